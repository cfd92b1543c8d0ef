"""Data mode ``sharded``: every part has rows of its own that nobody else reads; what is common is agreed by statistics.

1. Each node sends a ``ShardSummary`` of its shard: rows, columns, and how many rows each class has. No value travels.
2. The market merges them into a ``ShardPlan``: one class list, the hold-out of every shard, sizes. What does not fit
   together is refused by part.
3. Each node is told what all agreed on, and nobody's counts (``ShardAgreement``). It cuts its own shard: the rows of class ``c``, ascending, are shuffled with the stream ``shard`` keyed by (seed,
   part, c), and the first ``holdout_counts[part][c]`` of them only score. For a regression all rows are one class.

The statistics that features are scaled by are agreed in the same way (``parity_fl.models.moments``); a forest's bins by
its own phases.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from statistics import median_low
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.data import Dataset, Labels, is_number_name, label_classes, targets
from parity_fl.limits import DATA_LIMITS, MAX_CLASSES, MAX_FEATURES, MAX_LABEL_CHARS, MAX_NAMES_CHARS, MAX_PARTS
from parity_fl.partition_config import SHARDED
from parity_fl.prng import Sha256Stream, derive_key, shuffled
from parity_fl.skew import largest_remainder
from parity_protocol.errors import BadDocument, BadField, ExecutionFailed, FailureReason

__all__ = [
    "ShardAgreement",
    "ShardCut",
    "ShardPlan",
    "ShardSummary",
    "cut_shard",
    "fingerprint_of",
    "held_out",
    "summarize",
]

_WEIGHT_CAP: Final = 10  # times the median part: rows are the node's own claim, and nobody can count them
_NUMBER_MEMBERS: Final = ("part", "n_rows", "n_features")
_DIGEST_CHARS: Final = 64
_HEX_CHARS: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What a node says about its shard.

    Attributes:
        part: Its number.
        n_rows: Rows in all.
        n_features: Columns without the label.
        feature_names: Their names, if the data have any.
        class_counts: Rows by class; empty for a regression.
        has_numbers: Every label is a number; classes of numbers and of words cannot be matched.
        fingerprint: Of its bytes, ``fingerprint_of``; empty when nobody may take the part over.
    """

    part: int
    n_rows: int
    n_features: int
    feature_names: tuple[str, ...] | None
    class_counts: Mapping[str, int]
    has_numbers: bool
    fingerprint: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return JSON-ready members; ``from_dict`` reads them back to an equal summary."""
        names = None if self.feature_names is None else list(self.feature_names)
        members = {name: getattr(self, name) for name in (*_NUMBER_MEMBERS, "has_numbers", "fingerprint")}
        return {**members, "feature_names": names, "class_counts": dict(self.class_counts)}

    @classmethod
    def from_dict(cls, raw: object) -> ShardSummary:
        """Read a summary that somebody else made.

        Raises:
            BadDocument: A member is missing, unknown, of the wrong type, over its cap, or contradicts another.
        """
        if not isinstance(raw, dict) or set(raw) != {field.name for field in fields(cls)}:
            _bad(f"expected exactly {', '.join(field.name for field in fields(cls))}")
        bounds = (("part", 0, MAX_PARTS - 1), ("n_rows", 1, DATA_LIMITS.max_rows), ("n_features", 1, MAX_FEATURES))
        for name, low, high in bounds:
            if type(raw[name]) is not int or not low <= raw[name] <= high:
                _bad(f"{name} must be a whole number from {low} to {high}")
        if not isinstance(raw["has_numbers"], bool):
            _bad("has_numbers must be true or false")
        mark = raw["fingerprint"]
        if not isinstance(mark, str) or len(mark) not in {0, _DIGEST_CHARS} or not set(mark) <= _HEX_CHARS:
            _bad("fingerprint must be 64 lower-case hex characters, or empty")
        names = raw["feature_names"]
        if names is not None:
            if not isinstance(names, list) or len(names) != raw["n_features"] or not all(map(_is_name, names)):
                _bad(f"feature_names must be {raw['n_features']} strings")
            if sum(map(len, names)) > MAX_NAMES_CHARS:
                _bad(f"feature_names have over {MAX_NAMES_CHARS} characters together")
        counts = raw["class_counts"]
        if not isinstance(counts, dict) or len(counts) > MAX_CLASSES or not all(map(_is_name, counts)):
            _bad(f"class_counts must be an object of at most {MAX_CLASSES} class names")
        if not all(type(count) is int and 1 <= count <= raw["n_rows"] for count in counts.values()):
            _bad("each class must have a whole number of rows, at least 1")
        if counts and sum(counts.values()) != raw["n_rows"]:
            _bad(f"class_counts add up to {sum(counts.values())} rows, n_rows is {raw['n_rows']}")
        if raw["has_numbers"] and not all(map(is_number_name, counts)):
            _bad("classes that are numbers must be named as they are written shortest")
        return cls(
            part=raw["part"],
            n_rows=raw["n_rows"],
            n_features=raw["n_features"],
            feature_names=None if names is None else tuple(names),
            class_counts=counts,
            has_numbers=raw["has_numbers"],
            fingerprint=mark,
        )


@dataclass(frozen=True, slots=True)
class ShardAgreement:
    """What every node is told of all shards: enough to cut its own, and nothing of how many rows another has.

    Attributes:
        total_parts: Number of parts.
        seed: 64 lower-case hex characters.
        n_features: Columns of every shard.
        class_names: All classes in index order; empty for a regression.
        fingerprints: Of each part's bytes: a node that takes a part over knows whether it has the same.
        holdout_fraction: Share of a shard's rows that only score, in [0, 1).
    """

    total_parts: int
    seed: str
    n_features: int
    class_names: tuple[str, ...]
    fingerprints: tuple[str, ...]
    holdout_fraction: float

    def to_dict(self) -> dict[str, object]:
        """Return JSON-ready members; ``from_dict`` reads them back to an equal agreement."""
        members: dict[str, object] = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**members, "class_names": list(self.class_names), "fingerprints": list(self.fingerprints)}

    @classmethod
    def from_dict(cls, raw: object) -> ShardAgreement:
        """Read what the market published.

        Raises:
            BadDocument: A member is missing, unknown or wrong.
        """
        if not isinstance(raw, dict) or set(raw) != {field.name for field in fields(cls)}:
            _bad("the agreement has other members")
        names, marks, fraction = raw["class_names"], raw["fingerprints"], raw["holdout_fraction"]
        good = (
            type(raw["total_parts"]) is int
            and 1 <= raw["total_parts"] <= MAX_PARTS
            and type(raw["n_features"]) is int
            and 1 <= raw["n_features"] <= MAX_FEATURES
            and isinstance(raw["seed"], str)
            and len(raw["seed"]) == _DIGEST_CHARS
            and set(raw["seed"]) <= _HEX_CHARS
            and isinstance(names, list)
            and len(names) <= MAX_CLASSES
            and all(map(_is_name, names))
            and isinstance(marks, list)
            and len(marks) == raw["total_parts"]
            and all(isinstance(mark, str) and len(mark) <= _DIGEST_CHARS for mark in marks)
            and isinstance(fraction, int | float)
            and 0 <= fraction < 1
        )
        if not good:
            _bad("a member of the agreement is out of its range")
        return cls(raw["total_parts"], raw["seed"], raw["n_features"], tuple(names), tuple(marks), float(fraction))


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What the market knows of all parts.

    Attributes:
        total_parts: Number of parts.
        seed: 64 lower-case hex characters.
        n_features: Columns of every shard.
        feature_names: Of part 0, if it has any; no part has other ones.
        class_names: The union of all shards' classes, in the order of ``label_classes``; empty for a regression.
        counts: Rows that each part trains on, ``[part][class]``; one column for a regression.
        holdout_counts: Rows that each part only scores with, in the same shape.
        holdout_fraction: What was asked for.
        fingerprints: Of each part's bytes.

    A part that was left out when the others agreed has no rows.
    """

    total_parts: int
    seed: str
    n_features: int
    feature_names: tuple[str, ...] | None
    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    holdout_counts: tuple[tuple[int, ...], ...]
    holdout_fraction: float = 0.0
    fingerprints: tuple[str, ...] = ()

    @property
    def agreement(self) -> ShardAgreement:
        """What nodes are told."""
        return ShardAgreement(
            total_parts=self.total_parts,
            seed=self.seed,
            n_features=self.n_features,
            class_names=self.class_names,
            fingerprints=self.fingerprints or ("",) * self.total_parts,
            holdout_fraction=self.holdout_fraction,
        )

    @property
    def present(self) -> tuple[int, ...]:
        """Parts that agreed, ascending: those that have rows."""
        return tuple(part for part in range(self.total_parts) if any(self.counts[part]))

    @property
    def n_rows(self) -> int:
        """Rows of all shards, hold-outs included."""
        return sum(map(sum, self.counts)) + self.holdout_size

    @property
    def holdout_size(self) -> int:
        """Rows in all hold-outs."""
        return sum(map(sum, self.holdout_counts))

    @property
    def class_count(self) -> int:
        """Number of classes; 0 for a regression."""
        return len(self.class_names)

    @property
    def strategy(self) -> str:
        """``sharded``: how the rows are dealt."""
        return SHARDED

    @property
    def assignment_hash(self) -> str:
        """``digest()``, under the name that a cut's hash has."""
        return self.digest()

    @property
    def strata(self) -> str:
        """``class`` or ``rows``: what the columns of ``counts`` are."""
        return "class" if self.class_names else "rows"

    @property
    def overlap_counts(self) -> tuple[tuple[int, ...], ...]:
        """Rows that parts borrow from each other: none."""
        return ()

    def part_size(self, part: int) -> int:
        """Rows that ``part`` trains on."""
        return sum(self.counts[part])

    def weight(self, part: int) -> float:
        """Return what an update of ``part`` weighs: its rows, but never over ten times the median part's.

        Rows are what a node says of itself here, and one that lies must not own the model. The low median: of two parts
        the smaller one counts, so that one liar cannot raise it.
        """
        middle = median_low(self.part_size(one) for one in self.present)
        return float(min(self.part_size(part), _WEIGHT_CAP * middle))

    def to_dict(self) -> dict[str, object]:
        """Return JSON-ready members; ``from_dict`` reads them back to an equal plan."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ShardPlan:
        """Read what ``to_dict`` wrote: the market's own file, which nobody else sends."""
        matrix = {name: tuple(tuple(row) for row in raw[name]) for name in ("counts", "holdout_counts")}
        names = None if raw["feature_names"] is None else tuple(raw["feature_names"])
        lists = {name: tuple(raw[name]) for name in ("class_names", "fingerprints")}
        return cls(**{**raw, **matrix, **lists, "feature_names": names})

    def without(self, parts: Collection[int]) -> ShardPlan:
        """Return the plan of the others; what was agreed on stays."""
        nothing = (0,) * max(1, self.class_count)
        counts, held = (
            tuple(nothing if part in parts else row for part, row in enumerate(rows))
            for rows in (self.counts, self.holdout_counts)
        )
        marks = tuple("" if part in parts else mark for part, mark in enumerate(self.fingerprints))
        return replace(self, counts=counts, holdout_counts=held, fingerprints=marks)

    def digest(self) -> str:
        """Return the SHA-256, hex, that the round record names the plan by.

        It covers no fingerprints: their salts are drawn anew in each session, also in one that goes on with another.
        """
        members = {name: value for name, value in self.to_dict().items() if name != "fingerprints"}
        text = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(b"parity-fl/shards/v1\x00" + text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ShardCut:
    """One shard as training sees it. Row ids are sorted uint32; ``truth`` is class indices or targets, ``(n,)``."""

    training: NDArray[np.uint32]
    holdout: NDArray[np.uint32]
    truth: NDArray[np.float64]


def fingerprint_of(data: bytes, salt: bytes) -> str:
    """Return the SHA-256, hex, by which a part's bytes are known again by whoever is told the salt.

    Args:
        data: The shard, as it lies there.
        salt: Secret random bytes of the part; without it rows that are few could be guessed from their hash.
    """
    head = b"parity-fl/shard/1\x00" + len(salt).to_bytes(4, "big") + salt
    return hashlib.sha256(head + hashlib.sha256(data).digest()).hexdigest()


def summarize(dataset: Dataset, part: int, *, classification: bool, fingerprint: str = "") -> ShardSummary:
    """Return what a node says about its shard.

    Args:
        dataset: The whole shard.
        fingerprint: From ``fingerprint_of``.

    Raises:
        ExecutionFailed: ``data_invalid``: the labels do not fit the task.
    """
    counts: dict[str, int] = {}
    if classification:
        classes = label_classes(dataset.labels)
        counts = dict(zip(classes.names, np.bincount(classes.index).tolist(), strict=True))
    else:
        targets(dataset.labels)
    return ShardSummary(
        part=part,
        n_rows=len(dataset.labels),
        n_features=dataset.features.shape[1],
        feature_names=dataset.feature_names,
        class_counts=counts,
        has_numbers=dataset.labels.dtype.kind == "f",
        fingerprint=fingerprint,
    )


def cut_shard(agreed: ShardAgreement, labels: Labels, part: int, *, fingerprint: str = "") -> ShardCut:
    """Cut one's own shard; the node does this.

    Args:
        agreed: What all parts agreed on.
        labels: Raw labels of the shard, shape ``(n,)``.
        part: Whose shard it is.
        fingerprint: Of the shard's bytes; must be the one that was agreed, if one was.

    Raises:
        BadField: There is no such part.
        ExecutionFailed: ``data_invalid``: these are not the rows that were summarized.
    """
    if not 0 <= part < agreed.total_parts:
        raise BadField(f"part must be 0 to {agreed.total_parts - 1}, got {part}", field="part")
    if agreed.fingerprints[part] and agreed.fingerprints[part] != fingerprint:
        _changed("its bytes are other ones")
    if agreed.class_names:
        own = label_classes(labels)
        place = {name: index for index, name in enumerate(agreed.class_names)}
        if not set(own.names) <= set(place):
            _changed("it has classes that the plan does not know")
        strata = np.array([place[name] for name in own.names], dtype=np.int64)[own.index]
        truth = strata.astype(np.float64)
    else:
        truth = targets(labels)
        strata = np.zeros(len(truth), dtype=np.int64)
    sizes = np.bincount(strata, minlength=max(1, len(agreed.class_names))).tolist()
    key = bytes.fromhex(agreed.seed) + part.to_bytes(4, "big")
    is_held = np.zeros(len(truth), dtype=np.bool_)
    for stratum, count in enumerate(held_out(agreed.holdout_fraction, sizes)):
        if count:
            rows = np.flatnonzero(strata == stratum).astype(np.uint32)
            is_held[shuffled(rows, Sha256Stream(derive_key("shard", key, stratum.to_bytes(4, "big"))))[:count]] = True
    return ShardCut(
        training=np.flatnonzero(~is_held).astype(np.uint32),
        holdout=np.flatnonzero(is_held).astype(np.uint32),
        truth=truth,
    )


def held_out(fraction: float, sizes: Sequence[int]) -> list[int]:
    """Return how many rows of each class only score: market and node count alike, and one row always trains."""
    wanted = Fraction(str(fraction)) * sum(sizes)
    return largest_remainder(int(wanted + Fraction(1, 2)), sizes, [max(0, size - 1) for size in sizes])


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_LABEL_CHARS and value.isprintable()


def _bad(message: str) -> NoReturn:
    raise BadDocument(f"not a shard's summary: {message}")


def _changed(message: str) -> NoReturn:
    raise ExecutionFailed(
        FailureReason.DATA_INVALID,
        f"the shard is not the one that was summarized: {message}",
        hint="A shard must not change while its session runs.",
    )
