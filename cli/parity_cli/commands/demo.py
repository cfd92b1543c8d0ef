"""``parity demo``."""

from __future__ import annotations

import sys

import click

from parity_cli.lazy import Command
from parity_cli.output import Output, pass_output

__all__ = ["demo"]


@click.command(
    cls=Command,
    example="""
    parity demo
    parity demo --keep
    parity demo --json > summary.json
    """,
)
@click.option("--keep", is_flag=True, help="Leave it all running after the summary, until Ctrl-C; keep the folder.")
@pass_output
def demo(output: Output, keep: bool) -> int:
    """Show everything at work on this machine, in about a minute.

    Starts an embedded chain, a market and three nodes as processes, stakes, trains a random forest over the nodes and a
    linear regression, kills a node while it works, and ends with what was earned and confirmed on chain. The exit status
    is 1 if any statement of the summary does not hold. Nothing is left behind.
    """
    from rich.console import Console

    from parity_cli.demo.run import Interrupted, run_demo
    from parity_cli.demo.screen import next_steps, render
    from parity_cli.demo.story import Demo
    from parity_cli.demo.summary import Summary
    from parity_cli.exit_codes import FAILED_CHECK, OK

    console = Console(stderr=True, highlight=False)

    def told(summary: Summary, demo: Demo) -> None:
        stack = demo.stack
        output.emit(summary.to_json(), lambda: render(summary, symbol=stack.deployment.symbol))
        for statement in summary.statements:
            if output.json and not statement.holds:
                output.warn(f"does not hold: {statement.text}: {statement.detail}")
        console.print(next_steps(str(stack.folder) if keep else None, stack.join.url, stack.rpc_url))
        sys.stdout.flush()

    try:
        summary = run_demo(console, keep=keep, told=told)
    except Interrupted:
        raise KeyboardInterrupt from None
    return OK if summary.ok else FAILED_CHECK
