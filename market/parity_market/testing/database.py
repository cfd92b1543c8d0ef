"""Databases for tests: the migrations run once in a process, since they cost more than most tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from parity_market.store.migrate import upgrade_sqlite
from parity_market.store.sqlite import SqliteStore, open_sqlite

__all__ = ["ensure_database", "open_empty"]


def ensure_database(path: Path) -> None:
    """Put a database without a row at ``path``, unless something is there."""
    if not path.exists():
        path.write_bytes(_empty())


async def open_empty(path: Path) -> SqliteStore:
    """Open the database at ``path``, which is made without a row if it is not there."""
    ensure_database(path)
    return await open_sqlite(path)


@cache
def _empty() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "market.sqlite"
        upgrade_sqlite(path)
        return path.read_bytes()
