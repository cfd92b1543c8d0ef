"""How far a transfer has come: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from parity_cli.output import Output

__all__ = ["OnProgress", "transferring"]

OnProgress = Callable[[int, int | None], None]  # bytes so far, and in all once that is known

LINE_EVERY_S = 2.0


@contextmanager
def transferring(out: Output, label: str, *, shown: bool | None) -> Iterator[OnProgress]:
    """Give a function that shows how far a transfer has come, on standard error.

    Args:
        shown: None shows it on a terminal only; True also where nobody can see a bar move, as lines.
    """
    if shown is False or (shown is None and not out.console.is_terminal):
        yield lambda _done, _total: None
    elif out.console.is_terminal:
        with _bar(out, label) as show:
            yield show
    else:
        yield _Lines(out, label, time.monotonic)


@contextmanager
def _bar(out: Output, label: str) -> Iterator[OnProgress]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out.console, transient=True) as progress:
        bar = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


class _Lines:
    """Prints a line when ``LINE_EVERY_S`` have passed since the last one, and one at the end."""

    def __init__(self, out: Output, label: str, now: Callable[[], float]) -> None:
        self._out = out
        self._label = label
        self._now = now
        self._began = self._said = now()
        self._first: int | None = None  # what was here before: a transfer that is taken up again

    def __call__(self, done: int, total: int | None) -> None:
        """Take note of how far it is."""
        now = self._now()
        if self._first is None:
            self._first = done
        if now - self._said < LINE_EVERY_S and done != total:
            return
        from parity_protocol.quantities import format_bytes

        self._said = now
        rate = (done - self._first) / max(now - self._began, 1e-3)
        parts = [f"{self._label}: {format_bytes(done)}" + (f" of {format_bytes(total)}" if total is not None else "")]
        if rate >= 1:
            parts.append(f"{format_bytes(int(rate))}/s")
            if total is not None and done < total:
                parts.append(f"{round((total - done) / rate)} s left")
        self._out.say(", ".join(parts))
