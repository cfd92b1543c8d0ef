"""The settings of a partition, checked in the network's words.

Imports no NumPy, because admission reads settings in the idle node.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from parity_fl.fields import Section, fail
from parity_fl.limits import MAX_CLASSES, MAX_ID_CHARS, MAX_PARTS

__all__ = [
    "BY_STRATUM",
    "MAX_REDRAWS",
    "PARTITION_FIELDS",
    "PARTITION_STRATEGIES",
    "SHARDED",
    "PartitionConfig",
    "partition_config",
    "sharded_config",
]

PARTITION_STRATEGIES: Final = ("random", "stratified", "sequential", "non_iid", "label_skew")
BY_STRATUM: Final = frozenset({"stratified", "non_iid", "label_skew"})  # dealt class by class, by a matrix of counts
_ALIASES: Final = {"iid": "random", "dirichlet": "non_iid"} | {name: name for name in PARTITION_STRATEGIES}
MAX_REDRAWS: Final = 10
SHARDED: Final = "sharded"  # in place of a strategy: the rows are cut already
_SHARDED_FIELDS: Final = frozenset({"strategy", "total_parts", "min_samples", "overlap_ratio", "holdout_fraction"})
_ROW_LIMIT: Final = 1 << 31
_OVERLAP_RATIO: Final = 0.0
_HOLDOUT_FRACTION: Final = 0.2
_BALANCED: Final = False


@dataclass(frozen=True, slots=True)
class PartitionConfig:
    """How the data are cut.

    Attributes:
        strategy: ``random`` (alias ``iid``), ``stratified``, ``sequential``, ``non_iid`` (alias ``dirichlet``) or
            ``label_skew``; required.
        min_samples: Fewest rows of a part; required.
        total_parts: Default 1.
        overlap_ratio: Rows that a part borrows from the next, as a fraction of its own, in [0, 1); default 0.
        holdout_fraction: Rows that nobody trains on and the market scores with, in [0, 1); default 0.2.
        alpha: Of ``non_iid``, above 0, required there: the concentration of the Dirichlet distribution by which each
            class is shared out; the smaller, the more unequal.
        balanced: Of ``non_iid``: a part that has its share of all rows gets no more of the classes that follow;
            default false.
        classes_per_part: Of ``label_skew``: classes that each part has rows of; default 2, or as many as it takes to
            give every class an owner.
    """

    strategy: str
    min_samples: int
    total_parts: int = 1
    overlap_ratio: float = _OVERLAP_RATIO
    holdout_fraction: float = _HOLDOUT_FRACTION
    alpha: float | None = None
    balanced: bool = _BALANCED
    classes_per_part: int | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the wire members that mean something to the strategy; reading them gives an equal config."""
        members = asdict(self)
        for name, owner in _OWNER.items():
            if self.strategy != owner or members[name] is None:
                del members[name]
        return members


PARTITION_FIELDS: Final = (*PartitionConfig.__dataclass_fields__, "part_index")
_OWNER: Final = {"alpha": "non_iid", "balanced": "non_iid", "classes_per_part": "label_skew"}


def sharded_config(section: Section, parts: int) -> PartitionConfig:
    """Read the ``partition_config`` of a sharded session, of which only what is left to decide counts.

    Args:
        parts: How many shards there are.

    Raises:
        BadField: A member means nothing where rows are nobody's to move, or is wrong.
    """
    for name in section.members:
        if name not in _SHARDED_FIELDS and section.get(name) is not None:
            section.refuse(name, "means nothing to a sharded session: every part has its own rows")
    if section.get("strategy", SHARDED) != SHARDED:
        section.refuse("strategy", f"must be {SHARDED} or left out: every part has its own rows")
    if section.whole("total_parts", 1, MAX_PARTS, parts) != parts:
        section.refuse("total_parts", f"must be the number of shards, {parts}")
    if section.number("overlap_ratio", 0.0):
        section.refuse("overlap_ratio", "must be 0: a sharded part cannot borrow rows")
    held = section.number("holdout_fraction", _HOLDOUT_FRACTION)
    if not 0 <= held < 1:
        section.refuse("holdout_fraction", f"must be at least 0 and below 1, got {held}")
    least = section.whole("min_samples", 1, _ROW_LIMIT, 1)
    return PartitionConfig(strategy=SHARDED, min_samples=least, total_parts=parts, holdout_fraction=held)


def partition_config(section: Section) -> tuple[PartitionConfig, int | None]:
    """Read ``partition_config``: the settings, and the part that a task is for, if it names one.

    Raises:
        BadField: The first thing that is wrong.
    """
    if section.get("strategy", "") == "":
        fail("partition_config.strategy", "partition strategy is required")
    named = section.text("strategy", MAX_ID_CHARS).lower()
    strategy = _ALIASES.get(named)
    alpha = section.number("alpha", 0.0)
    if strategy == "non_iid":
        if section.get("alpha") is None:
            fail("partition_config.alpha", "alpha parameter is required for non_iid partitioning strategy")
        if alpha <= 0:
            fail("partition_config.alpha", f"alpha parameter must be positive for non-IID partitioning, got {alpha:f}")
    least = section.get("min_samples")
    if type(least) is not int or least < 1:
        fail("partition_config.min_samples", "min_samples must be provided and positive")
    if strategy is None:
        fail("partition_config.strategy", f"unsupported partitioning strategy: {named}")
    # Old programs send alpha with every strategy, so it alone may be there for nothing.
    for name in ("balanced", "classes_per_part"):
        given = section.get(name)
        if given is not None and given is not False and strategy != _OWNER[name]:
            section.refuse(name, f"belongs to {_OWNER[name]}, not to {strategy}")
    config = PartitionConfig(
        strategy=strategy,
        min_samples=section.whole("min_samples", 1, _ROW_LIMIT, 1),
        total_parts=section.whole("total_parts", 1, MAX_PARTS, 1),
        overlap_ratio=section.number("overlap_ratio", _OVERLAP_RATIO),
        holdout_fraction=section.number("holdout_fraction", _HOLDOUT_FRACTION),
        alpha=alpha if strategy == "non_iid" else None,
        balanced=section.flag("balanced", _BALANCED),
        classes_per_part=(
            None if section.get("classes_per_part") is None else section.whole("classes_per_part", 1, MAX_CLASSES, 1)
        ),
    )
    for name, value in (("overlap_ratio", config.overlap_ratio), ("holdout_fraction", config.holdout_fraction)):
        if not 0 <= value < 1:
            section.refuse(name, f"must be at least 0 and below 1, got {value}")
    if section.get("part_index") is None:
        return config, None
    return config, section.whole("part_index", 0, config.total_parts - 1, 0)
