"""Data sets from bytes: CSV (last column is the label) and JSON (``{"features": [[…]], "labels": […]}``).

Strict on purpose: a value that is not a finite number, a short row or a duplicate member is an error with its place,
because every part must read exactly the same table. Messages are the network's own (they name samples from 0), with
the row and column of the file, counted from 1, behind them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parity_fl.limits import DATA_LIMITS, MAX_CLASSES, MAX_LABEL_CHARS, MAX_NAMES_CHARS, DataLimits
from parity_protocol.errors import BadDocument, ExecutionFailed, FailureReason
from parity_protocol.strict_json import check_depth

__all__ = [
    "Dataset",
    "LabelMap",
    "Labels",
    "is_number_name",
    "label_classes",
    "load_dataset",
    "parse_csv",
    "parse_json",
    "targets",
]

Labels: TypeAlias = NDArray[np.float64] | NDArray[np.str_]

_JSON_DEPTH: Final = 8  # an object of lists of rows has 3; a little more is told better by what follows
_CHUNK_CELLS: Final = 1 << 18  # cells are Python strings for a moment: about 16 MB of them at a time


@dataclass(frozen=True, slots=True)
class Dataset:
    """A table. ``features`` is float64 ``(n, d)``, finite; ``labels`` is ``(n,)``, numbers if every label is one."""

    features: NDArray[np.float64]
    labels: Labels
    feature_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class LabelMap:
    """The classes of a data set, in the one order that all parts share.

    Attributes:
        names: Class names, sorted (numerically if all labels are numbers); a whole number has no decimal point.
        index: The class of each row, shape ``(n,)``, int64.
    """

    names: tuple[str, ...]
    index: NDArray[np.int64]


def load_dataset(data: bytes, data_format: str, *, limits: DataLimits = DATA_LIMITS) -> Dataset:
    """Parse ``data`` as ``csv`` or ``json`` (any case).

    Raises:
        ExecutionFailed: ``data_invalid``; the message says where.
    """
    parser = {"csv": parse_csv, "json": parse_json}.get(data_format.lower())
    if parser is None:
        _fail(f"unsupported data format: {data_format} (expected csv or json)")
    return parser(data, limits=limits)


def parse_csv(data: bytes, *, limits: DataLimits = DATA_LIMITS) -> Dataset:
    """Read a CSV table: comma-separated, UTF-8, one sample a line, the last column is the label.

    The first row is a header exactly if none of its feature cells is a number. Blank lines are skipped; a quoted field
    must end on its own line.

    Raises:
        ExecutionFailed: ``data_invalid``; the message names the row and column.
    """
    _check_bytes(data, limits)
    if max(data.count(b"\n"), data.count(b"\r")) > limits.max_rows + 1:  # blank lines cost time as well
        _fail(f"too many rows: at most {limits.max_rows} are allowed")
    reader = _rows(data, limits)
    first = next(reader, None)
    if first is None:
        _fail("failed to read CSV header: the data are empty")
    width = len(first.cells) - 1
    if width == 0:
        _fail("features have zero dimensions: each row needs at least one feature and a label")
    if width > limits.max_columns:
        _fail(f"too many columns: {width} features, at most {limits.max_columns} are allowed")

    names: tuple[str, ...] | None = None
    if not any(_is_number(cell) for cell in first.cells[:-1]):
        names = _names([cell.strip() for cell in first.cells[:-1]], "failed to read CSV header")
    else:
        reader = _chain(first, reader)

    careful = b"_" in data or not data.isascii()
    blocks: list[NDArray[np.float64]] = []
    labels: list[str] = []
    while chunk := list(islice(reader, max(1, _CHUNK_CELLS // width))):
        _check_table(len(labels) + len(chunk), width, limits.max_cells, limits)
        for sample, row in enumerate(chunk, len(labels)):
            if len(row.cells) != width + 1:
                got = len(row.cells) - 1
                _fail(
                    f"inconsistent feature dimensions at sample {sample}: expected {width}, got {got} (row {row.line})"
                )
        blocks.append(_numbers(chunk, len(labels), careful=careful))
        labels.extend(row.cells[-1].strip() for row in chunk)
    if not blocks:
        _fail("no data loaded: there is a header and no sample")
    return Dataset(np.concatenate(blocks), _labels(labels), names)


def parse_json(data: bytes, *, limits: DataLimits = DATA_LIMITS) -> Dataset:
    """Read ``{"features": [[number, …], …], "labels": [number or string, …]}``; ``feature_names`` is optional.

    Raises:
        ExecutionFailed: ``data_invalid``; the message names the sample.
    """
    _check_bytes(data, limits)
    # Commas and brackets bound the cells and rows before the parser makes an object of each.
    if data.count(b",") > limits.max_json_cells or data.count(b"[") > limits.max_rows + 2:
        _fail(f"too much data: at most {limits.max_json_cells} cells in {limits.max_rows} rows are allowed in JSON")
    try:
        check_depth(data, _JSON_DEPTH)  # the parser's own guard depends on a limit that programs change
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_only_object, parse_int=float, parse_constant=_no_constant
        )
    except UnicodeDecodeError as exc:
        _fail(f"failed to parse JSON data: not UTF-8 at byte {exc.start}")
    except BadDocument:
        _fail("failed to parse JSON data: nested too deeply")
    except ValueError as exc:
        _fail(f"failed to parse JSON data: {exc}")
    if not isinstance(document, dict):
        _fail("failed to parse JSON data: expected an object with features and labels")

    rows, labels = document.get("features"), document.get("labels")
    if not isinstance(rows, list) or not isinstance(labels, list):
        _fail("failed to parse JSON data: features and labels must both be lists")
    if not rows and not labels:
        _fail("no data loaded")
    if len(rows) != len(labels):
        _fail(f"mismatched features and labels length: {len(rows)} features, {len(labels)} labels")
    features = _json_features(rows, limits)
    names = document.get("feature_names")
    if names is None:
        return Dataset(features, _json_labels(labels))
    if not isinstance(names, list) or len(names) != features.shape[1]:
        _fail(f"failed to parse JSON data: feature_names must be {features.shape[1]} strings")
    return Dataset(features, _json_labels(labels), _names(names, "failed to parse JSON data"))


def label_classes(labels: Labels) -> LabelMap:
    """Number the distinct labels in sorted order.

    Raises:
        ExecutionFailed: There are more classes than a classifier may have.
    """
    values, index = np.unique(labels, return_inverse=True)
    if len(values) > MAX_CLASSES:
        _fail(f"the labels have {len(values)} distinct values, at most {MAX_CLASSES} classes are allowed")
    names = tuple(_class_name(value) for value in values.tolist())
    return LabelMap(names, index.reshape(-1).astype(np.int64))


def targets(labels: Labels) -> NDArray[np.float64]:
    """Return the labels as regression targets, float64 ``(n,)``.

    Raises:
        ExecutionFailed: A label is not a number.
    """
    if labels.dtype.kind == "f":
        return labels.astype(np.float64)
    words: list[str] = labels.tolist()
    for sample, word in enumerate(words):
        if not _is_number(word):
            _fail(f"invalid label at sample {sample}: {_shown(word)} is not a number")
    return np.array([float(word) for word in words], dtype=np.float64)


# -- CSV ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    line: int  # counted from 1
    cells: list[str]


def _rows(data: bytes, limits: DataLimits) -> Iterator[_Row]:
    """Yield the non-blank rows. Lines are checked before the csv module sees them, so that no row can grow past one."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    reader = csv.reader(_lines(text, limits), strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            _fail(f"failed to read CSV record: {exc} (row {reader.line_num})")
        except UnicodeDecodeError:
            _fail(f"failed to read CSV record: not UTF-8 (row {reader.line_num + 1} or later)")
        if cells and (len(cells) > 1 or cells[0].strip()):
            yield _Row(reader.line_num, cells)


def _lines(text: io.TextIOWrapper, limits: DataLimits) -> Iterator[str]:
    number = 0
    while line := text.readline(limits.max_line_chars + 1):
        number += 1
        if len(line) > limits.max_line_chars:
            _fail(f"failed to read CSV record: over {limits.max_line_chars} characters (row {number})")
        if "\x00" in line:
            _fail(f"failed to read CSV record: NUL character (row {number})")
        if '"' in line and line.count('"') % 2:
            _fail(f"failed to read CSV record: a quoted field does not end on its line (row {number})")
        yield line


def _chain(first: _Row, rest: Iterator[_Row]) -> Iterator[_Row]:
    yield first
    yield from rest


def _numbers(chunk: list[_Row], first_sample: int, *, careful: bool) -> NDArray[np.float64]:
    """Turn the feature cells of equally long rows into finite numbers, shape ``(len(chunk), d)``.

    ``careful`` says that the file has characters that Python takes for digits and other readers do not.
    """
    cells = [row.cells[:-1] for row in chunk]
    try:
        block = np.array(cells, dtype=np.float64)
        odd = careful and any("_" in text or not text.isascii() for text in map("".join, cells))
    except ValueError:
        odd = True
    if odd:  # float() also takes 1_000 and foreign digits: find the cell to blame
        for row in chunk:
            for column, cell in enumerate(row.cells[:-1], 1):
                if not _is_number(cell):
                    _fail(f"failed to parse feature value: {_shown(cell)} (row {row.line}, column {column})")
        block = np.array([[float(cell) for cell in row] for row in cells], dtype=np.float64)
    bad = np.argwhere(~np.isfinite(block))
    if len(bad):
        row_index, column = bad[0].tolist()
        _fail(
            f"input features contain NaN or Inf values at sample {first_sample + row_index}, feature {column}"
            f" (row {chunk[row_index].line}, column {column + 1})"
        )
    return block


# -- JSON --------------------------------------------------------------------------------------------------------


def _only_object(members: list[tuple[str, object]]) -> dict[str, object]:
    """Accept the one object that the format has; nested objects fail here, at the first one."""
    found: dict[str, object] = {}
    for name, value in members:
        if name not in {"features", "labels", "feature_names"}:
            raise ValueError(f"unknown member {_shown(name)}, expected features and labels")
        if name in found:
            raise ValueError(f"duplicate member {name}")
        found[name] = value
    if not members:
        raise ValueError("expected an object with features and labels")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number: NaN and Inf values are not allowed")


def _json_features(rows: list[object], limits: DataLimits) -> NDArray[np.float64]:
    first = rows[0]
    width = len(first) if isinstance(first, list) else 0
    if width == 0:
        _fail("features have zero dimensions: sample 0 is not a non-empty list of numbers")
    if width > limits.max_columns:
        _fail(f"too many columns: {width} features, at most {limits.max_columns} are allowed")
    _check_table(len(rows), width, limits.max_json_cells, limits)
    for sample, row in enumerate(rows):
        if not isinstance(row, list):
            _fail(f"failed to parse JSON data: sample {sample} is not a list of numbers")
        if len(row) != width:
            _fail(f"inconsistent feature dimensions at sample {sample}: expected {width}, got {len(row)}")
        if set(map(type, row)) != {float}:
            column = next(place for place, cell in enumerate(row) if type(cell) is not float)
            _fail(f"failed to parse feature value: not a number at sample {sample}, feature {column}")
    block = np.array(rows, dtype=np.float64)
    bad = np.argwhere(~np.isfinite(block))  # 1e999 parses, to infinity
    if len(bad):
        sample, column = bad[0].tolist()
        _fail(f"input features contain NaN or Inf values at sample {sample}, feature {column}")
    return block


def _json_labels(labels: list[object]) -> Labels:
    words: list[str] = []
    numbers: list[float] = []
    for sample, label in enumerate(labels):
        if isinstance(label, float):
            numbers.append(label)
            words.append(_class_name(label))
        elif isinstance(label, str):
            words.append(label.strip())
        else:
            _fail(f"invalid label at sample {sample}: expected a number or a string")
    if len(numbers) == len(labels):
        return _finite_labels(np.array(numbers, dtype=np.float64))
    return _labels(words)


# -- shared ------------------------------------------------------------------------------------------------------


def _labels(words: list[str]) -> Labels:
    for sample, word in enumerate(words):
        if not word or len(word) > MAX_LABEL_CHARS or "\x00" in word:
            _fail(f"invalid label at sample {sample}: {_shown(word)} (1 to {MAX_LABEL_CHARS} characters)")
        if not word.isprintable():
            _fail(f"invalid label at sample {sample}: {_shown(word)} has unprintable characters")
    if all(map(_is_number, words)):
        return _finite_labels(np.array([float(word) for word in words], dtype=np.float64))
    return np.array(words, dtype=np.str_)


def _finite_labels(values: NDArray[np.float64]) -> NDArray[np.float64]:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        _fail(f"input labels contain NaN or Inf values at sample {int(bad[0])}")
    return values


def is_number_name(name: str) -> bool:
    """Return whether a class of this name is a number as ``label_classes`` names it."""
    try:
        value = float(name)
    except ValueError:
        return False
    return math.isfinite(value) and _class_name(value) == name


def _class_name(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _names(names: list[object] | list[str], where: str) -> tuple[str, ...]:
    for column, name in enumerate(names, 1):
        if not isinstance(name, str) or len(name) > MAX_LABEL_CHARS or not name.isprintable():
            _fail(f"{where}: the name of feature {column} must be at most {MAX_LABEL_CHARS} printable characters")
    found = tuple(str(name) for name in names)
    if sum(map(len, found)) > MAX_NAMES_CHARS:
        _fail(f"{where}: the feature names have over {MAX_NAMES_CHARS} characters in all")
    return found


def _is_number(text: str) -> bool:
    """Whether the text is a number in plain ASCII; NaN and infinities are numbers here, and refused later by name."""
    if not text.isascii() or "_" in text:
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:40] + "…")


def _check_bytes(data: bytes, limits: DataLimits) -> None:
    if len(data) > limits.max_bytes:
        _fail(f"the data set is {len(data)} bytes long, at most {limits.max_bytes} are allowed")


def _check_table(rows: int, columns: int, max_cells: int, limits: DataLimits) -> None:
    if rows > limits.max_rows:
        _fail(f"too many rows: at most {limits.max_rows} are allowed")
    if rows * columns > max_cells:
        _fail(f"too many cells: at most {max_cells} are allowed")


def _fail(message: str) -> NoReturn:
    raise ExecutionFailed(FailureReason.DATA_INVALID, message)
