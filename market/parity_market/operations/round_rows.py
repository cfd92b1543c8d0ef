"""Reading what a session's rounds left in rows."""

from __future__ import annotations

import json

from parity_market.store import sql_rounds
from parity_market.store.base import ReadTx
from parity_market.store.rows import FlRoundRow, FlSessionRow

__all__ = ["PHASES_LEFT", "closed_rounds", "first_round", "phases_left"]

PAGE = 20_000  # rounds and phases read at once
PHASES_LEFT = "phases_left"  # among a closed phase's metrics; see ``Reduced.left``


def closed_rounds(tx: ReadTx, group_id: str) -> list[FlRoundRow]:
    """Return a session's rounds and phases that have closed, in order; the final model's row has an empty cohort."""
    found: list[FlRoundRow] = []
    at = (0, 0)
    while page := tx.all(sql_rounds.FL_ROUNDS, group_id=group_id, first=at[0], first_phase=at[1], limit=PAGE):
        found += [row for row in page if row.state == "closed"]
        at = (page[-1].round, page[-1].phase + 1)
    return found


def first_round(session: FlSessionRow) -> int:
    """Return the number of a session's first round of training: above 1 where it went on from a checkpoint."""
    resumed = json.loads(session.settings_doc).get("resumed_from") or {}
    return int(resumed.get("round", 0)) + 1


def phases_left(row: FlRoundRow) -> int:
    """Return how many phases were to come when one closed."""
    return int(json.loads(row.metrics_doc).get(PHASES_LEFT) or 0)
