"""Shapes that most statements have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.sql import ClauseElement

from parity_market.store.statements import Command, Query

__all__ = ["bind", "find", "insert", "scalar", "select_row", "select_rows", "update", "whole"]

R = TypeVar("R", bound=NamedTuple)


def bind(name: str, kind: Any = sa.Text) -> sa.BindParameter[Any]:
    """Return a parameter that an execution must give."""
    return sa.bindparam(name, type_=kind() if isinstance(kind, type) else kind, required=True)


def whole(name: str) -> sa.BindParameter[Any]:
    """Return a parameter that is a whole number."""
    return bind(name, sa.BigInteger)


def select_row(row: type[R], table: sa.Table) -> sa.Select[Any]:
    """Return the selection of whole rows."""
    return sa.select(*(table.c[field] for field in row._fields))


def select_rows(row: type[R], table: sa.Table, refine: Callable[[sa.Select[Any]], sa.Select[Any]]) -> Query[R]:
    """Return a query of whole rows of a table."""
    make: Callable[[Sequence[Any]], R] = row._make
    return Query(refine(select_row(row, table)), make)


def find(row: type[R], table: sa.Table, *columns: str) -> Query[R]:
    """Return a query of the rows whose ``columns`` equal the parameters of the same names."""
    return select_rows(
        row, table, lambda s: s.where(*(table.c[name] == bind(name, table.c[name].type) for name in columns))
    )


def scalar(statement: ClauseElement) -> Query[Any]:
    """Return a query of single values."""
    return Query(statement, lambda values: values[0])


def insert(table: sa.Table, *, without: Sequence[str] = ()) -> Command:
    """Return the insertion of whole rows."""
    names = [column.name for column in table.columns if column.name not in without]
    return Command(sa.insert(table).values({name: sa.bindparam(name, required=True) for name in names}))


def update(table: sa.Table, where: Sequence[str], *changed: str) -> Command:
    """Set ``changed`` where the key columns equal the parameters ``key_<name>``."""
    statement = sa.update(table)
    for name in where:
        statement = statement.where(table.c[name] == bind(f"key_{name}", table.c[name].type))
    return Command(
        statement.values({name: sa.bindparam(name, required=True, type_=table.c[name].type) for name in changed})
    )
