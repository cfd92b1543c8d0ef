"""``parity fl contributions``: what each part gave to a session's model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from parity_cli.lazy import Command
from parity_cli.output import Output
from parity_cli.place import with_client
from parity_protocol.errors import NotFound

if TYPE_CHECKING:
    from parity_client import Client
    from parity_protocol.api.rounds import FlRoundReply, FlSessionReply

__all__ = ["all_rounds", "contributions"]


@click.command(
    cls=Command,
    short_help="Show what each part gave to a session's model.",
    example="""
    parity fl contributions 3f0c…
    parity fl contributions 3f0c… --json
    """,
)
@click.argument("session_id")
@with_client
async def contributions(out: Output, client: Client, session_id: str) -> None:
    """Show each part's score on the hold-out, summed over the rounds, and the share of the reward that follows it.

    Parts are scored in each round as it closes, if the session's `rounds_config` asked for it: `contribution`:
    `leave_one_out` or `shapley`. Afterwards their updates are gone.
    """
    from parity_cli.screens.sessions import contributions_screen

    found, rounds = await all_rounds(client, session_id)
    asked = found.settings.get("rounds")
    settings = asked if isinstance(asked, dict) else {}
    method = str(settings.get("contribution", "none"))
    if method == "none":
        raise NotFound(
            f"the parts of session {session_id} are not scored",
            hint='It must be asked for when a session is submitted: "rounds_config": {"contribution": "shapley"}.',
        )
    share = settings.get("base_share", 1.0)
    base_share = float(share) if isinstance(share, int | float) else 1.0
    parts = _scores(rounds)
    best = max([0.0, *(part["contribution"] for part in parts)])
    for part in parts:
        part["share"] = max(0.0, part["contribution"]) / best if best > 0 else None
    document = {"id": found.id, "state": found.state, "method": method, "base_share": base_share, "parts": parts}
    out.emit(document, lambda: contributions_screen(found.id, method, base_share, parts))


async def all_rounds(client: Client, session_id: str) -> tuple[FlSessionReply, list[FlRoundReply]]:
    """Return a session and all rounds that have closed, page by page."""
    rounds: list[FlRoundReply] = []
    number, phase = 1, 0
    while True:
        found = await client.sessions.show(session_id, from_round=number, from_phase=phase)
        rounds += [one for one in found.rounds if one.state == "closed"]
        if not found.rounds or (found.rounds[-1].round, found.rounds[-1].phase) >= (found.round, found.phase):
            return found, rounds
        number, phase = found.rounds[-1].round, found.rounds[-1].phase + 1


def _scores(rounds: list[FlRoundReply]) -> list[dict[str, Any]]:
    """Return by part its node, how many rounds scored it, its score summed and in each round."""
    parts: dict[int, dict[str, Any]] = {}
    for one in rounds:
        for update in one.updates:
            score = update.metrics.get("contribution")
            if update.state != "accepted" or isinstance(score, bool) or not isinstance(score, int | float):
                continue
            empty: dict[str, Any] = {"part": update.part, "node_id": "", "contribution": 0.0, "rounds": []}
            part = parts.setdefault(update.part, empty)
            part["node_id"] = update.node_id
            part["contribution"] += float(score)
            part["rounds"].append({"round": one.round, "contribution": float(score)})
    return [parts[part] for part in sorted(parts)]
