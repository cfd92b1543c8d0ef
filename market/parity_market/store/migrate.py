"""Bring a database to the newest schema."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import sqlalchemy as sa

from parity_market.store.tables import metadata
from parity_protocol.errors import ConfigInvalid

__all__ = ["upgrade_sqlite"]


def upgrade_sqlite(path: Path) -> None:
    """Create or upgrade the tables of a SQLite file.

    Raises:
        ConfigInvalid: The file is not a database.
    """
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.pool.NullPool)
    try:
        metadata.create_all(engine)
    except (sqlite3.DatabaseError, sa.exc.DatabaseError) as exc:
        raise ConfigInvalid([f"{path} is not a database that the market can use: {exc}"]) from exc
    finally:
        engine.dispose()
