"""``parity fl``: federated learning."""

from __future__ import annotations

import click

from parity_cli.lazy import LazyGroup

_SIMULATE = "parity_cli.commands.fl_simulate"


@click.group(
    cls=LazyGroup,
    short_help="Federated learning: simulate it, run it, follow it.",
    lazy={
        "simulate": (f"{_SIMULATE}:simulate", "Run a whole federation in this process, on a file."),
        "plot": ("parity_cli.commands.fl_plot:plot", "Draw accuracy and loss by round."),
    },
)
def fl() -> None:
    """Federated learning: many nodes train one model, each on its own part of the data.

    `simulate` needs no market, no node and no money: it runs the same code in one process.
    """
