"""``parity completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from parity_cli.lazy import Command
from parity_cli.output import Output, pass_output


@click.command(
    cls=Command,
    short_help="Print a completion script for your shell.",
    example="""
    source <(parity completion bash)
    parity completion zsh > ~/.zfunc/_parity
    parity completion fish > ~/.config/fish/completions/parity.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_output
def completion(out: Output, shell: str) -> None:
    """Print the script that completes parity's commands and options in SHELL."""
    from parity_cli.app import cli

    found = get_completion_class(shell)
    assert found is not None
    script = found(cli, {}, "parity", "_PARITY_COMPLETE").source()
    out.emit({"shell": shell, "script": script}, script)
