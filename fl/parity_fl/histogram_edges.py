"""Where a feature is cut into bins: exact quantiles of all parts' rows together, from sums alone.

A float32 is read as a 32-bit key that rises with its value (sign-magnitude turned into order; -0.0 counts as 0.0). To find
the value of a rank, parts count their keys by the top 11 bits; the bucket that holds the rank is then counted by the next
11 bits, and its bucket by the last 10. Only sums of counts are used, so the edges do not depend on who holds which row.

For ``B`` bins, ``n`` rows in all:

1. Candidates are the values of the ranks ``ceil(i * n / (4 B))``, ``0 < i < 4 B``, below the largest value.
2. If there are more than ``B - 1``, walk them upwards with the rows up to each; take one as an edge when the rows since
   the last edge, times the edges left plus one, are at least the rows since the last edge and after; the rest are left.
3. The threshold of an edge is half-way, in float64, between its value and the next larger value of any row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.histogram_codec import Sparse, summed
from parity_protocol.errors import BadDocument

__all__ = [
    "DIGIT_BITS",
    "SEARCH_PHASES",
    "Bins",
    "EdgeSearch",
    "chosen_candidates",
    "count_digits",
    "float_keys",
    "key_values",
]

DIGIT_BITS: Final = (11, 11, 10)
SEARCH_PHASES: Final = 2 * len(DIGIT_BITS) - 1  # the second search begins with the counts of the first
_OVERSAMPLING: Final = 4
_SIGN: Final = np.uint32(1 << 31)


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Thresholds of all features.

    Attributes:
        thresholds: Rising within a feature, float64 ``(e,)``; a value belongs to the bin of the number of thresholds below it.
        starts: First threshold of each feature, then ``e``; int64 ``(d + 1,)``.
    """

    thresholds: NDArray[np.float64]
    starts: NDArray[np.int64]

    @property
    def width(self) -> int:
        """Most bins of a feature."""
        return int(np.diff(self.starts).max(initial=0)) + 1

    def varying(self) -> NDArray[np.int64]:
        """Return the features that have more than one bin."""
        return np.flatnonzero(np.diff(self.starts) > 0).astype(np.int64)

    def of(self, features: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Return the bin of every value, shape ``(n, d)``."""
        out = np.zeros(features.shape, dtype=np.uint16)
        for column in self.varying().tolist():
            cuts = self.thresholds[self.starts[column] : self.starts[column + 1]]
            out[:, column] = np.searchsorted(cuts, features[:, column].astype(np.float64), side="left")
        return out


def float_keys(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return keys that compare like the values."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 + 0.0 is 0.0
    return np.where(bits >= _SIGN, ~bits, bits | _SIGN)


def key_values(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Return the values of keys."""
    return np.where(keys >= _SIGN, keys & ~_SIGN, ~keys).astype(np.uint32).view(np.float32)


def count_digits(
    keys: NDArray[np.uint32], feature: NDArray[np.int64], prefix: NDArray[np.int64], *, step: int
) -> Sparse:
    """Count a part's keys in the asked buckets by their next digit.

    Args:
        keys: Shape ``(n, d)``.
        feature: Feature of each bucket, shape ``(q,)``; buckets rise by (feature, prefix).
        prefix: The bucket's digits so far; 0 at step 0.
        step: Which digit, 0 to 2.

    Returns:
        Counts by ``bucket * 2**bits + digit``.
    """
    shift, bits = sum(DIGIT_BITS[step + 1 :]), DIGIT_BITS[step]
    found: list[NDArray[np.int64]] = []
    columns, starts = np.unique(feature, return_index=True)
    for column, first, end in zip(columns.tolist(), starts.tolist(), [*starts[1:].tolist(), len(feature)], strict=True):
        column_keys = keys[:, column].astype(np.int64)
        above = column_keys >> (shift + bits)
        place = np.minimum(np.searchsorted(prefix[first:end], above), end - first - 1)
        inside = prefix[first:end][place] == above
        digit = (column_keys[inside] >> shift) & ((1 << bits) - 1)
        found.append(((first + place[inside]) << bits) | digit)
    index = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    return summed(index, np.ones(len(index), dtype=np.int64))


def chosen_candidates(rows_up_to: list[int], rows: int, most: int) -> list[int]:
    """Return which candidates become edges (rule 2).

    Args:
        rows_up_to: For each candidate, the rows with at most its value; rising and below ``rows``.
        rows: All rows.
        most: Most edges.
    """
    if len(rows_up_to) <= most:
        return list(range(len(rows_up_to)))
    chosen: list[int] = []
    last = 0
    for place, up_to in enumerate(rows_up_to):
        left = most - len(chosen)
        if left == 0:
            break
        if (up_to - last) * (left + 1) >= rows - last:
            chosen.append(place)
            last = up_to
    return chosen


class EdgeSearch:
    """Finds the edges of a group of features, by one sum of counts after another.

    Args:
        features: The group, ascending, shape ``(f,)``.
        rows: Rows of each part.
        max_bins: Most bins of a feature, at least 2.
    """

    def __init__(self, features: NDArray[np.int64], rows: tuple[int, ...], max_bins: int) -> None:
        self.features = features
        self._part_rows = rows
        self._rows = sum(rows)
        self._max_bins = max_bins
        ranks = np.unique(
            [-(-i * self._rows // (_OVERSAMPLING * max_bins)) for i in range(1, _OVERSAMPLING * max_bins)]
        )
        self._of = np.repeat(np.arange(len(features)), len(ranks))  # the feature of each searched rank
        self._rank = np.tile(ranks.astype(np.int64), len(features))
        self._reset()
        self._first: Sparse | None = None  # the sums of step 0, which the second search needs again
        self._first_of_part: dict[int, Sparse] = {}
        self._of_part: dict[int, Sparse] = {}
        self._edges: NDArray[np.uint32] | None = None  # keys of the chosen edges, once known
        self.thresholds: list[NDArray[np.float64]] | None = None

    @property
    def left(self) -> int:
        """Phases until the thresholds are known, this one included; ``SEARCH_PHASES`` at first."""
        return len(DIGIT_BITS) - self.step + (len(DIGIT_BITS) - 1 if self._edges is None else 0)

    @staticmethod
    def most_cells(max_bins: int) -> int:
        """Return the most cells that the tables of one feature have."""
        return (_OVERSAMPLING * max_bins - 1) << max(DIGIT_BITS)

    def _reset(self) -> None:
        self.step = 0
        self._prefix = np.zeros(len(self._rank), dtype=np.int64)
        self._left = self._rank.copy()  # rank inside the bucket
        self._inside = np.zeros(len(self._rank), dtype=np.int64)  # rows of the last bucket

    def buckets(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return feature and prefix of each bucket to count, rising."""
        if self.step == 0:
            self._bucket = self._of
            self._n_buckets = len(self.features)
            return self.features, np.zeros(len(self.features), dtype=np.int64)
        code, self._bucket = np.unique((self._of << 32) | self._prefix, return_inverse=True)
        self._n_buckets = len(code)
        return self.features[code >> 32], code & 0xFFFF_FFFF

    @property
    def size(self) -> int:
        """Cells of the table of the buckets that were returned last."""
        return self._n_buckets << DIGIT_BITS[self.step]

    def check(self, part: int, cells: Sparse) -> None:
        """Refuse a part whose counts are not its own earlier counts, one digit further.

        Raises:
            BadDocument: They do not add up.
        """
        feature, _ = self.buckets()
        counted = np.zeros(len(feature), dtype=np.int64)
        np.add.at(counted, cells.index >> DIGIT_BITS[self.step], cells.value)
        if self.step == 0:
            if (counted != self._part_rows[part]).any():
                wrong = int(np.argmax(counted != self._part_rows[part]))
                _fail(part, f"feature {feature[wrong]} has {counted[wrong]} rows of {self._part_rows[part]}")
            return
        earlier = (self._first_of_part if self.step == 1 else self._of_part)[part]
        at = np.searchsorted(earlier.index, self._cell)
        at = np.minimum(at, max(0, len(earlier) - 1))
        expected = np.where(earlier.index[at] == self._cell, earlier.value[at], 0) if len(earlier) else 0 * self._cell
        said = counted[self._bucket]
        if not np.array_equal(said, expected):
            wrong = int(np.argmax(said != expected))
            column = int(self.features[self._of[wrong]])
            _fail(part, f"a bucket of feature {column} has {said[wrong]} rows, before it had {expected[wrong]}")

    def close(self, total: Sparse, of_part: dict[int, Sparse]) -> None:
        """Take the sum of all parts' counts and go one digit further.

        Args:
            total: Sum over parts.
            of_part: Each part's own counts, kept to check its next answer.
        """
        if self.step == 0:
            self._first, self._first_of_part = total, of_part
        self._of_part = of_part
        self._descend(total)
        if self.step < len(DIGIT_BITS):
            return
        if self._edges is None:
            self._choose()
        else:
            self._finish()

    def _descend(self, total: Sparse) -> None:
        bits = DIGIT_BITS[self.step]
        self.buckets()
        running = np.cumsum(total.value)
        first = np.searchsorted(total.index, self._bucket << bits)
        before = np.concatenate([[0], running])[first]
        at = np.searchsorted(running, before + self._left)
        self._cell = total.index[at]
        self._left = self._left - (running[at] - total.value[at] - before)
        self._inside = total.value[at]
        self._prefix = (self._prefix << bits) | (self._cell & ((1 << bits) - 1))
        self.step += 1

    def _choose(self) -> None:
        """Pick edges among the candidates, and search for the value that follows each."""
        edges: list[NDArray[np.int64]] = []
        ranks: list[int] = []
        owners: list[int] = []
        up_to = self._rank - self._left + self._inside  # rows with at most the found value
        searched = len(self._rank) // len(self.features)
        for place in range(len(self.features)):
            mine = slice(place * searched, (place + 1) * searched)
            counts, where = np.unique(up_to[mine], return_index=True)
            keep = counts < self._rows
            counts, keys = counts[keep], self._prefix[mine][where][keep]
            chosen = chosen_candidates(counts.tolist(), self._rows, self._max_bins - 1)
            edges.append(keys[chosen])
            ranks.extend(int(counts[one]) + 1 for one in chosen)
            owners.extend([place] * len(chosen))
        self._edges = np.concatenate(edges).astype(np.uint32)
        self._of = np.array(owners, dtype=np.int64)
        self._rank = np.array(ranks, dtype=np.int64)
        self._reset()
        if not len(self._rank):
            self.thresholds = [np.empty(0, dtype=np.float64) for _ in self.features]
        elif self._first is not None:
            self._descend(self._first)

    def _finish(self) -> None:
        values = key_values(self._edges).astype(np.float64) if self._edges is not None else np.empty(0)
        after = key_values(self._prefix.astype(np.uint32)).astype(np.float64)
        middle = values + (after - values) / 2
        self.thresholds = np.split(middle, np.searchsorted(self._of, np.arange(1, len(self.features))))


def _fail(part: int, message: str) -> NoReturn:
    raise BadDocument(f"part {part}: its counts do not add up: {message}")
