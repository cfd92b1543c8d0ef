"""Tables as files: a CSV's label is put last, where the parsers of ``parity_fl`` expect it."""

from __future__ import annotations

import csv
import io
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

from parity_protocol.errors import BadField, TooLarge

__all__ = ["label_last", "read_table"]


def read_table(path: Path, label: str | None) -> tuple[bytes, str]:
    """Return a file's table and its format, ``csv`` or ``json``, by its name.

    Args:
        label: Column of the label; None is the last one.

    Raises:
        TooLarge: The file is larger than any data set may be.
        BadField: There is no such column.
    """
    from parity_fl.limits import DATA_LIMITS

    if path.stat().st_size > DATA_LIMITS.max_bytes:
        raise TooLarge(f"{path} has over {DATA_LIMITS.max_bytes} bytes")
    content = path.read_bytes()
    if path.suffix.lower() == ".json":
        if label not in {None, "labels"}:
            raise BadField("in a JSON file the labels are in the member labels", field="label")
        return content, "json"
    return content if label is None else label_last(content, label), "csv"


def label_last(data: bytes, column: str) -> bytes:
    """Return a table with a header whose column ``column`` is moved to the end; as it is if it is there already.

    Args:
        data: CSV, UTF-8, with a header.
        column: Its name in the header, or its number from 1.

    Raises:
        BadField: There is no such column, or the text is no table.
    """
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = next(rows, [])
        place = _place([name.strip() for name in header], column)
        if place == len(header) - 1:
            return data
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        for row in chain([header], rows):
            # A row that is too short stays so: the parser names it.
            writer.writerow([*row[:place], *row[place + 1 :], row[place]] if place < len(row) else row)
    except (UnicodeDecodeError, csv.Error) as exc:
        raise BadField(f"the data are not a CSV table in UTF-8: {exc}", field="data") from exc
    return out.getvalue().encode()


def _place(header: list[str], column: str) -> int:
    if header.count(column) == 1:
        return header.index(column)
    if header.count(column) > 1:
        raise BadField(f"the header has {header.count(column)} columns {column!a}", field="label")
    if column.isascii() and column.isdecimal() and 1 <= int(column[:9]) <= len(header):
        return int(column) - 1
    if not any(header):
        raise BadField("the data are empty: expected a CSV table with a header line", field="data")
    near = get_close_matches(column, header, n=1)
    meant = f"; did you mean {near[0]!a}?" if near else f" (it has {', '.join(header)[:200]})"
    raise BadField(f"the header has no column {column[:64]!a}{meant}", field="label")
