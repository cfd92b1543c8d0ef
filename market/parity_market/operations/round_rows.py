"""Reading what a session's rounds left in rows."""

from __future__ import annotations

from parity_market.store import sql_rounds
from parity_market.store.base import ReadTx
from parity_market.store.rows import FlRoundRow

__all__ = ["closed_rounds"]

PAGE = 20_000  # rounds and phases read at once


def closed_rounds(tx: ReadTx, group_id: str) -> list[FlRoundRow]:
    """Return a session's rounds and phases that have closed, in order; the final model's row has an empty cohort."""
    found: list[FlRoundRow] = []
    at = (0, 0)
    while page := tx.all(sql_rounds.FL_ROUNDS, group_id=group_id, first=at[0], first_phase=at[1], limit=PAGE):
        found += [row for row in page if row.state == "closed"]
        at = (page[-1].round, page[-1].phase + 1)
    return found
