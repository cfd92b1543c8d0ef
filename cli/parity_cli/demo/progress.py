"""What the person watching sees while the demo runs: a live screen on a terminal, plain lines anywhere else.

Everything goes to standard error; standard output belongs to the summary.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from parity_protocol.clock import Clock
from parity_protocol.task import TaskEvent, TaskState

__all__ = ["Progress"]

REFRESH_PER_S = 8.0
_WIDEST = 110  # columns; a wider screen only tears the lines apart


@dataclass(slots=True)
class _Step:
    name: str
    detail: str = ""
    seconds: float | None = None  # None while it goes on
    failed: bool = False
    after_tasks: bool = False


@dataclass(slots=True)
class _Task:
    label: str
    kind: str
    state: str = TaskState.PENDING.value
    words: str = "waits for a node"
    since: float = 0.0
    lost: list[str] = field(default_factory=list)  # nodes that had it and lost it


class Progress:
    """Steps, tasks and remarks, as they come.

    Args:
        console: Where to; on a terminal the screen is redrawn in place.
        nodes: Names of the nodes by id.
    """

    def __init__(self, console: Console, *, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._began = clock.monotonic()
        self._steps: list[_Step] = []
        self._tasks: dict[str, _Task] = {}
        self._spinner = Spinner("dots", style="cyan")
        self._live = (
            Live(get_renderable=self._screen, console=console, refresh_per_second=REFRESH_PER_S, transient=False)
            if console.is_terminal
            else None
        )
        self.nodes: dict[str, str] = {}

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return self._clock.monotonic() - self._began

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        else:
            self._line("parity demo: a whole market on this machine")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @contextmanager
    def step(self, name: str, doing: str) -> Generator[_Step]:
        """Show a step while the block runs; the block may say how it ended in ``detail``."""
        step = _Step(name, doing, after_tasks=bool(self._tasks))
        self._steps.append(step)
        began = self.seconds
        try:
            yield step
        except BaseException:
            step.failed = True
            raise
        finally:
            step.seconds = self.seconds - began
            if self._live is None:
                self._line(f"{name}: {step.detail}{' – failed' if step.failed else ''}")

    def task(self, task_id: str, label: str, kind: str) -> None:
        """Show a task from now on."""
        self._tasks[task_id] = _Task(label, kind, since=self.seconds)
        if self._live is None:
            self._line(f"{label}: submitted")

    def event(self, task_id: str, event: str, state: str, node_id: str | None) -> None:
        """Show what happened to a task."""
        task = self._tasks[task_id]
        node = self.nodes.get(node_id or "", "a node")
        task.state, task.since = state, self.seconds
        if event in {TaskEvent.LEASE_LOST, TaskEvent.RELEASE, TaskEvent.NODE_FAULT, TaskEvent.UNCONFIRMED_FAULT}:
            task.lost.append(node)
        task.words = _words(event, state, node)
        if task.lost and event in {TaskEvent.START, TaskEvent.ACCEPT}:
            task.words += f", after {' and '.join(task.lost)} lost it"
        if self._live is None:
            self._line(f"{task.label}: {task.words}")

    def remark(self, task_id: str, words: str) -> None:
        """Say something about a task."""
        task = self._tasks[task_id]
        task.words, task.since = words, self.seconds
        if self._live is None:
            self._line(f"{task.label}: {words}")

    def _line(self, text: str) -> None:
        self._console.print(f"[{self.seconds:5.1f} s] {text}", markup=False, highlight=False, soft_wrap=True)

    # -- the live screen -----------------------------------------------------------------------------------------

    def _screen(self) -> RenderableType:
        width = min(self._console.width, _WIDEST)
        title = Text.assemble(("parity demo", "bold"), ("  a whole market on this machine", "dim"))
        parts: list[RenderableType] = [Text(), title, Text(), self._step_rows(width, after_tasks=False)]
        if self._tasks:
            tasks = _grid(width)
            for task in self._tasks.values():
                is_over = task.state == TaskState.COMPLETED
                moving = task.state in {TaskState.LEASED, TaskState.RUNNING, TaskState.VERIFYING}
                shown = f"{self.seconds - task.since:4.1f} s" if moving else ""
                words = Text(task.words, style="green" if is_over else "yellow" if task.lost else "")
                failed = task.state in {TaskState.FAILED, TaskState.NOT_VERIFIED, TaskState.CANCELLED}
                tasks.add_row(self._mark(is_over or failed, failed=failed), task.label, words, shown)
            parts += [Text(), tasks, Text(), self._step_rows(width, after_tasks=True)]
        return Group(*parts)

    def _step_rows(self, width: int, *, after_tasks: bool) -> Table:
        rows = _grid(width)
        for step in self._steps:
            if step.after_tasks == after_tasks:
                mark = self._mark(step.seconds is not None, failed=step.failed)
                rows.add_row(mark, step.name, step.detail, _time(step))
        return rows

    def _mark(self, is_over: bool, *, failed: bool) -> RenderableType:
        if failed:
            return Text("✗", style="red")
        return Text("✓", style="green") if is_over else self._spinner


def _grid(width: int) -> Table:
    table = Table.grid(padding=(0, 1))
    table.width = width - 1
    table.add_column(width=2, justify="right")
    table.add_column(width=12, no_wrap=True, style="bold")
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(width=7, justify="right", style="dim")
    return table


def _time(step: _Step) -> str:
    return "" if step.seconds is None else f"{step.seconds:.1f} s"


def _words(event: str, state: str, node: str) -> str:
    match event:
        case TaskEvent.CLAIM:
            return f"{node} holds the lease"
        case TaskEvent.START:
            return f"runs on {node}"
        case TaskEvent.REPORT:
            return f"{node} has reported; the market verifies"
        case TaskEvent.ACCEPT:
            return f"done by {node}"
        case TaskEvent.LEASE_LOST:
            return f"{node}'s lease has lapsed: another node may have it"
        case TaskEvent.RELEASE:
            return f"{node} has handed it back"
        case "submit":
            return "waits for a node"
        case _:
            return f"{state.replace('_', ' ')} ({event.replace('_', ' ')}, {node})"
