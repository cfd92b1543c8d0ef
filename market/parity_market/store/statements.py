"""Statements that are compiled once: SQLAlchemy Core writes the SQL, the database driver runs it.

Core's own execution costs 30–60 µs a statement, the driver's 3–8 µs; on the hot path a task needs about twenty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql import ClauseElement

__all__ = ["Command", "Prepared", "Query", "upsert"]

R_co = TypeVar("R_co", covariant=True)

Converter = Callable[[Any], Any]


class Prepared(NamedTuple):
    """A statement as the driver takes it."""

    text: str
    names: tuple[str, ...]  # of its parameters, in order
    fixed: Mapping[str, object]  # parameters whose value is part of the statement
    binds: tuple[tuple[int, Converter], ...]  # parameters to convert
    results: tuple[tuple[int, Converter], ...]  # columns to convert

    def arguments(self, params: Mapping[str, object]) -> Sequence[object]:
        """Return the parameters in order, as the driver takes them.

        Raises:
            KeyError: One is missing.
        """
        if self.fixed:
            params = {**self.fixed, **params}
        values = [params[name] for name in self.names]
        for index, convert in self.binds:
            values[index] = convert(values[index])
        return values

    def positional(self, row: tuple[object, ...]) -> Sequence[object]:
        """Return a whole row, as the driver takes it."""
        if not self.binds:
            return row
        values = list(row)
        for index, convert in self.binds:
            values[index] = convert(values[index])
        return values


class _Build(Protocol):
    def __call__(self, dialect: Dialect, /) -> ClauseElement: ...


class Command:
    """A statement that returns no rows.

    Args:
        source: A Core statement, or a function of the dialect that makes one.
    """

    def __init__(self, source: ClauseElement | _Build) -> None:
        self._source = source
        self._prepared: dict[str, Prepared] = {}

    def prepared(self, dialect: Dialect) -> Prepared:
        """Return the statement for one database, compiled at the first use."""
        found = self._prepared.get(dialect.name)
        if found is None:
            found = self._prepared[dialect.name] = self._compile(dialect)
        return found

    def _compile(self, dialect: Dialect) -> Prepared:
        source = self._source
        statement = source if isinstance(source, ClauseElement) else source(dialect)
        compiled = statement.compile(dialect=dialect)
        assert isinstance(compiled, sa.sql.compiler.SQLCompiler)
        names = tuple(compiled.positiontup or ())
        binds = []
        for index, name in enumerate(names):
            convert = compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect)
            if convert is not None:
                binds.append((index, convert))
        fixed = {name: bind.value for name, bind in compiled.binds.items() if not bind.required and name in names}
        results = []
        for index, column in enumerate(_columns(statement)):
            convert = column.type.dialect_impl(dialect).result_processor(dialect, None)
            if convert is not None:
                results.append((index, convert))
        return Prepared(compiled.string, names, fixed, tuple(binds), tuple(results))


class Query(Command, Generic[R_co]):
    """A statement that returns rows.

    Args:
        source: As of ``Command``.
        make: Makes a row of the columns' values.
    """

    def __init__(self, source: ClauseElement | _Build, make: Callable[[Sequence[Any]], R_co]) -> None:
        super().__init__(source)
        self.make = make


def upsert(table: sa.Table, *, keys: Sequence[str], update: Sequence[str]) -> Command:
    """Return an insert of a whole row that updates the columns ``update`` where ``keys`` exist; none: it is ignored."""

    def build(dialect: Dialect) -> ClauseElement:
        insert = sqlite.insert if dialect.name == "sqlite" else postgresql.insert
        statement = cast("sqlite.Insert", insert(table)).values(
            {column.name: sa.bindparam(column.name) for column in table.columns}
        )
        if not update:
            return statement.on_conflict_do_nothing(index_elements=list(keys))
        changed = {name: statement.excluded[name] for name in update}
        return statement.on_conflict_do_update(index_elements=list(keys), set_=changed)

    return Command(build)


def _columns(statement: ClauseElement) -> Sequence[Any]:
    if isinstance(statement, sa.Select | sa.CompoundSelect):
        return list(statement.selected_columns)
    return []
