"""What a command says: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from parity_protocol.errors import ParityError

__all__ = ["Output", "asking", "is_interactive", "pass_output", "printable"]

T = TypeVar("T")

# C0 without line end and tab, DEL, C1, and the marks that turn the writing direction around.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass
class Output:
    """One command's voice.

    Attributes:
        json: Print one JSON document instead of screens.
        context: What was done before an error, for the document that tells of it (a task's id).
        goes_on: What goes on when the person breaks the command off, and what can be done about that; empty: nothing does.
    """

    json: bool = False
    context: dict[str, Any] = field(default_factory=dict)
    goes_on: str = ""
    _console: Console | None = field(default=None, repr=False)

    def emit(self, document: Mapping[str, Any], screen: Callable[[], RenderableType] | str | None = None) -> None:
        """Print the command's result.

        Args:
            document: For programs. Amounts are decimal strings of base units, times RFC 3339 in UTC.
            screen: For people: text, or a function that makes something for rich; None prints nothing for them.
        """
        if self.json:
            click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))
        elif isinstance(screen, str):
            # A pipe gets the very bytes, a terminal nothing that it would obey: the text may be a task's or a market's.
            click.echo(printable(screen) if sys.stdout.isatty() else screen)
        elif screen is not None:
            self._stdout().print(screen())

    def say(self, text: str) -> None:
        """Tell the person at the terminal something."""
        click.echo(printable(text), err=True)

    def show(self, screen: RenderableType) -> None:
        """Show the person at the terminal something made with rich."""
        self.console.print(screen)

    def warn(self, text: str) -> None:
        """Warn the person at the terminal."""
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {printable(text)}", err=True)

    def failed(self, error: ParityError) -> None:
        """Tell what went wrong and what to do next; with ``--json`` as a document."""
        if self.json:
            told = {"code": error.code, "message": error.message, "hint": error.hint(), "field": error.field}
            click.echo(json.dumps({**self.context, "error": told}, indent=2, ensure_ascii=False))
            return
        click.echo(f"{click.style('error:', fg='red', bold=True)} {printable(error.message)}", err=True)
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.strerror and cause.strerror not in error.message:
            click.echo(f"  because: {cause.strerror}", err=True)
        if error.hint():
            click.echo(f"  → {printable(error.hint())}", err=True)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Return if the person agrees; ``yes`` agrees beforehand.

        Raises:
            click.UsageError: Nobody is there to be asked.
            click.Abort: The answer is no.
        """
        if yes:
            return
        if not is_interactive():
            raise click.UsageError("nobody is here to be asked: add --yes to agree beforehand")
        with asking():
            agrees = click.confirm(question, err=True)
        if not agrees:
            raise click.Abort

    @property
    def console(self) -> Console:
        """A rich console on standard error, for progress."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        return self._console

    def _stdout(self) -> Console:
        from rich.console import Console

        return Console(highlight=False)


@contextmanager
def asking() -> Iterator[None]:
    """Let Ctrl-C end a question at once: inside the event loop it would only be noted until the answer has come."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous if previous is not None else signal.SIG_DFL)


def printable(text: str) -> str:
    """Return ``text`` with every character that steers a terminal shown as ``�``."""
    return _CONTROL.sub("�", text.replace("\r\n", "\n"))


def is_interactive() -> bool:
    """Return whether a person can be asked something."""
    return sys.stdin.isatty()


def pass_output(function: Callable[..., T]) -> Callable[..., T]:
    """Give a command its ``Output`` as first argument."""

    @wraps(function)
    def command(*args: Any, **kwargs: Any) -> T:
        return function(click.get_current_context().ensure_object(Output), *args, **kwargs)

    return command
