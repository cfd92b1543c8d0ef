"""``parity demo`` as a process: signals, the folder, and that nothing is left behind."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable

import anyio
from rich.console import Console

from parity_cli.demo.keep import write_home
from parity_cli.demo.processes import ProcessEnded
from parity_cli.demo.progress import Progress
from parity_cli.demo.story import Demo, make_folder
from parity_cli.demo.summary import Summary
from parity_protocol.clock import Clock, SystemClock

__all__ = ["Interrupted", "run_demo"]

DYING_S = 0.2  # between a process's last packet and its end
INTERRUPTED_WITHIN_S = 0.5  # for the processes to end by themselves after Ctrl-C

Told = Callable[[Summary, Demo], None]


class Interrupted(Exception):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def run_demo(console: Console, *, keep: bool, told: Told, clock: Clock | None = None) -> Summary:
    """Run the demo and end every process that it started, whatever happens; blocks.

    Args:
        console: For progress.
        keep: Leave everything running after the summary until a signal comes, and the folder for ever.
        told: Gets the summary as soon as it is there.

    Raises:
        Interrupted: A signal came before the summary.
        ParityError: Something did not work at all; the folder with the logs stays, and is named.
    """
    clock = clock or SystemClock()
    folder = make_folder()
    demo = Demo(folder, Progress(console, clock=clock))
    quick = keeps_folder = keep
    try:
        summary = anyio.run(_run, demo, keep, told)
    except Interrupted:
        quick = True
        raise
    except BaseException:
        keeps_folder = True
        console.print(f"the logs of all processes: {folder / 'logs'}", markup=False, highlight=False, soft_wrap=True)
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends already, in bounded time
        demo.stack.stop(within_s=INTERRUPTED_WITHIN_S) if quick else demo.stack.stop()
        if not keeps_folder:
            shutil.rmtree(folder, ignore_errors=True)
    return summary


async def _run(demo: Demo, keep: bool, told: Told) -> Summary:
    caught: list[int] = []
    found: list[Summary] = []
    failure: list[Exception] = []

    async def watch(scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
            async for number in received:
                caught.append(number)
                scope.cancel()

    async def work(scope: anyio.CancelScope) -> None:
        try:
            with demo.progress:
                found.append(await demo.run())
            if keep:
                write_home(demo)
            told(found[0], demo)
            if keep:
                await anyio.sleep_forever()
        except Exception as exc:  # noqa: BLE001 - raised again below, without the groups around it
            failure.append(await _cause(demo, exc))
        scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(watch, group.cancel_scope)
            group.start_soon(work, group.cancel_scope)
    finally:
        with anyio.CancelScope(shield=True):
            await demo.stack.aclose()
    if failure and not caught:
        raise _leaf(failure[0])
    if not found:
        raise Interrupted(caught[0] if caught else signal.SIGINT)
    return found[0]


async def _cause(demo: Demo, error: Exception) -> Exception:
    """Return that a process has ended when one has: all else that failed comes of it."""
    await anyio.sleep(DYING_S)
    try:
        demo.stack.processes.check()
    except ProcessEnded as ended:
        return ended
    return error


def _leaf(error: BaseException) -> BaseException:
    """Return the error itself out of groups, which say nothing to people."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
