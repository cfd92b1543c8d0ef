"""Bring a database to the newest schema."""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from parity_protocol.errors import ConfigInvalid

__all__ = ["MIGRATIONS", "upgrade", "upgrade_sqlite"]

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade_sqlite(path: Path) -> None:
    """Create or upgrade the tables of a SQLite file, all or nothing.

    Raises:
        ConfigInvalid: The file is not a database, or it was made by a newer market.
    """
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.pool.NullPool)
    sa.event.listen(engine, "connect", _explicit_transactions)
    sa.event.listen(engine, "begin", _begin_immediate)
    try:
        with engine.begin() as connection:
            upgrade(connection)
    except (sqlite3.DatabaseError, sa.exc.DatabaseError) as exc:
        raise ConfigInvalid([f"{path} is not a database that the market can use: {exc}"]) from exc
    finally:
        engine.dispose()
    path.chmod(0o600)


def upgrade(connection: sa.Connection) -> None:
    """Run the migrations that ``connection``'s database has not had.

    Raises:
        ConfigInvalid: It was made by a newer market.
    """
    newest, known = _revisions()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise ConfigInvalid([f"the database has schema {current}, which this version does not know: update the market"])
    if current != newest:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


@lru_cache(maxsize=1)
def _revisions() -> tuple[str | None, frozenset[str]]:
    """Return the newest revision and all that there are; they are files, and read once."""
    scripts = ScriptDirectory.from_config(_config())
    return scripts.get_current_head(), frozenset(script.revision for script in scripts.walk_revisions())


# pysqlite opens transactions of its own before some statements only, and commits before DDL.
def _explicit_transactions(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
