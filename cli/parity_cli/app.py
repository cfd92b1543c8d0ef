"""``parity``: the root of the command line, and the one place where errors become words and exit codes."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from parity_cli.exit_codes import INTERRUPTED, OK, USAGE, exit_code_of
from parity_cli.lazy import LazyGroup
from parity_cli.output import Output
from parity_protocol.errors import Internal, ParityError

__all__ = ["COMMANDS", "cli", "main", "run"]

DEBUG = "PARITY_DEBUG"  # set to 1 it shows tracebacks

COMMANDS = {
    "node": ("parity_cli.commands.node:node", "Run a node: keys, stake, agent, status."),
    "market": ("parity_cli.commands.market:market", "Run a market."),
    "wallet": ("parity_cli.commands.wallet:wallet", "A submitter's key and money."),
    "task": ("parity_cli.commands.task:task", "Submit work and follow it."),
    "fl": ("parity_cli.commands.fl:fl", "Federated learning: simulate it, run it, follow it."),
    "data": ("parity_cli.commands.data:data", "Data by content identifier."),
    "chain": ("parity_cli.commands.chain:chain", "The embedded development chain."),
    "config": ("parity_cli.commands.config:config", "Join a market; show and check the settings."),
    "demo": ("parity_cli.commands.demo:demo", "Show everything at work on this machine, in about a minute."),
    "version": ("parity_cli.commands.version:version", "Show the version."),
    "completion": ("parity_cli.commands.completion:completion", "Print a completion script for your shell."),
}


@click.command(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    example="""
    parity demo
    parity config use 'https://market.example:8443/#market=…&cert=…'
    parity task submit --reward 0.1 --wait -- echo hello
    """,
)
@click.version_option(package_name="parity-node", prog_name="parity", message="%(prog)s %(version)s")
def cli() -> None:
    """A decentralized compute market: run nodes, submit work, run a market.

    Settings and keys are in PARITY_HOME (default ~/.parity). Every command has --help and --json.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    code = run(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        os._exit(code)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        os._exit(code)  # a thread still hashes a file or waits for a socket: nothing that it does counts any more
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; nothing but the code and the output leaves it."""
    output = Output()
    try:
        code = cli.main(args=list(arguments), prog_name="parity", standalone_mode=False, obj=output)
        return code if isinstance(code, int) else OK
    except click.Abort:
        return _interrupted(output, "aborted")
    except click.ClickException as exc:
        exc.show()
        return USAGE
    except KeyboardInterrupt:
        return _interrupted(output, "interrupted")
    except BrokenPipeError:
        return OK
    except Exception as exc:  # noqa: BLE001 - the process's edge: people get words, not a traceback
        return _tell(output, exc)


def _interrupted(output: Output, word: str) -> int:
    click.echo(word, err=True)
    if output.goes_on:
        output.say(f"  → {output.goes_on}")
    return INTERRUPTED


def _tell(output: Output, exc: Exception) -> int:
    if os.environ.get(DEBUG) == "1":
        traceback.print_exception(exc)
    error = exc
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, ParityError):
        hint = f"This is a mistake in the program. {DEBUG}=1 shows where."
        error = Internal(f"{type(error).__name__}: {error}", hint=hint)
    output.failed(error)
    return exit_code_of(error)
