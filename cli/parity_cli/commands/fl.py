"""``parity fl``: federated learning."""

from __future__ import annotations

import click

from parity_cli.lazy import LazyGroup

_SIMULATE = "parity_cli.commands.fl_simulate"
_SESSIONS = "parity_cli.commands.fl_sessions"


@click.group(
    cls=LazyGroup,
    short_help="Federated learning: simulate it, run it, follow it.",
    lazy={
        "simulate": (f"{_SIMULATE}:simulate", "Run a whole federation in this process, on a file."),
        "run": (f"{_SESSIONS}:run_session", "Submit a session, follow it, and keep its model."),
        "sessions": (f"{_SESSIONS}:sessions", "List your sessions."),
        "show": (f"{_SESSIONS}:show", "Show a session, round by round."),
        "contributions": (
            "parity_cli.commands.fl_contributions:contributions",
            "Show what each part gave to a session's model.",
        ),
        "watch": (f"{_SESSIONS}:watch", "Follow a session live."),
        "model": ("parity_cli.commands.fl_model:model", "Write a session's model to a file."),
        "score": ("parity_cli.commands.fl_model:score", "Score a model's file on data."),
        "pause": (f"{_SESSIONS}:pause", "Let a session wait."),
        "resume": (
            "parity_cli.commands.fl_resume:resume",
            "Go on with a paused session, or from an ended one's checkpoint.",
        ),
        "stop": (f"{_SESSIONS}:stop", "End a session after the open round."),
        "engine": ("parity_cli.commands.fl_engine:engine", "Engines beside our own: install, list, remove."),
        "plot": ("parity_cli.commands.fl_plot:plot", "Draw accuracy and loss by round."),
    },
)
def fl() -> None:
    """Federated learning: many nodes train one model, each on its own part of the data.

    `simulate` needs no market, no node and no money: it runs the same code in one process.
    """
