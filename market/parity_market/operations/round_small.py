"""Small files of sessions, durable in the commit of the rows that name them: one wait for the disk, not three or four.

The files lie in the session's folder as large ones do, but nobody waits until they are on the disk. What a power cut took
of them is written again from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from parity_market.store import sql_rounds
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import FlSmallFileRow

__all__ = ["forget", "keep", "kept"]


def keep(tx: Tx, group_id: str, files: Mapping[str, bytes]) -> None:
    """Note files, by their names in the session's folder; a name that is known already gets the new content."""
    for name, data in files.items():
        tx.insert(sql_rounds.FL_SMALL_FILE_PUT, FlSmallFileRow(group_id, name, data))


def forget(tx: Tx, group_id: str, *, keeps_states: bool = False) -> None:
    """Forget a session's files, but for states that later phases of its round need."""
    forgotten = sql_rounds.FL_SMALL_FILES_BUT_STATES_FORGOTTEN if keeps_states else sql_rounds.FL_SMALL_FILES_FORGOTTEN
    tx.run(forgotten, group_id=group_id)


def kept(tx: ReadTx, folder: Path, group_id: str) -> list[tuple[Path, bytes]]:
    """Return the files of a session that should lie in its folder, with their content."""
    return [(folder / row.name, row.data) for row in tx.all(sql_rounds.FL_SMALL_FILES, group_id=group_id)]
