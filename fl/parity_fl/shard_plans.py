"""Making one plan of what all nodes said of their shards, and finding the part that does not fit the others.

Only the market does this. What contradicts the majority is refused by part, so that one node that lies, or has the wrong
file, does not end the session of all; without a majority nobody can say who is wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Final, NoReturn

from parity_fl.limits import MAX_CLASSES
from parity_fl.partition_config import PartitionConfig
from parity_fl.shards import ShardPlan, ShardSummary, held_out
from parity_protocol.errors import BadField

__all__ = ["misfits", "odd_one_out", "plan_shards"]

_FEWEST_JUDGES: Final = 3  # of two that differ nobody knows which one is right
_MOST_TRIED: Final = 64  # parts; a plan without each of more would take longer than a round


def plan_shards(
    config: PartitionConfig,
    summaries: Sequence[ShardSummary],
    *,
    seed: str,
    classification: bool,
    absent: Collection[int] = (),
) -> ShardPlan:
    """Merge what all nodes said; only the market does this.

    Args:
        config: ``total_parts``, ``min_samples`` and ``holdout_fraction`` count; rows are nobody's to move.
        summaries: One of each part that is there, in any order.
        seed: 64 lower-case hex characters.
        classification: Shards have classes, else targets.
        absent: Parts that the session goes on without.

    Raises:
        BadField: A summary is missing or there twice, shards do not fit together, or one is too small; the message
            says which part.
    """
    if config.overlap_ratio:
        raise BadField(
            "overlap_ratio must be 0: a sharded part cannot borrow rows", field="partition_config.overlap_ratio"
        )
    by_part = {summary.part: summary for summary in summaries}
    if len(by_part) != len(summaries) or set(by_part) != set(range(config.total_parts)) - set(absent):
        _refuse(f"expected one summary of each of {config.total_parts} parts, got parts {sorted(by_part)[:20]}")
    shards = [by_part[part] for part in sorted(by_part)]
    first, names = shards[0], next((each.feature_names for each in shards if each.feature_names is not None), None)
    for shard in shards:
        if shard.n_features != first.n_features:
            _refuse(f"part {shard.part} has {shard.n_features} features, part {first.part} has {first.n_features}")
        if shard.feature_names not in {None, names}:
            _refuse(f"part {shard.part} has other feature names than the parts before it")
        if bool(shard.class_counts) != classification:
            _refuse(f"part {shard.part} says {'nothing of' if classification else 'something of'} classes")
        if classification and shard.has_numbers != first.has_numbers:
            _refuse(f"classes of part {shard.part} are {_kind(shard)}, those of part {first.part} are {_kind(first)}")
    classes = _union(shards) if classification else ()
    if len(classes) > MAX_CLASSES:
        _refuse(f"all shards have {len(classes)} classes together, at most {MAX_CLASSES} are allowed")
    if classification and len(classes) < 2:
        _refuse("all shards have one class only: there is nothing to learn")

    nothing = (0,) * max(1, len(classes))
    counts, held = [nothing] * config.total_parts, [nothing] * config.total_parts
    for shard in shards:
        sizes = [shard.class_counts.get(name, 0) for name in classes] or [shard.n_rows]
        out = held_out(config.holdout_fraction, sizes)
        rest = [size - taken for size, taken in zip(sizes, out, strict=True)]
        if sum(rest) < config.min_samples:
            raise BadField(
                f"invalid partition configuration: part {shard.part} would have {sum(rest)} samples, min_samples is"
                f" {config.min_samples} ({shard.n_rows} rows in its shard)",
                field="partition_config.min_samples",
            )
        counts[shard.part], held[shard.part] = tuple(rest), tuple(out)
    return ShardPlan(
        total_parts=config.total_parts,
        seed=seed,
        n_features=first.n_features,
        feature_names=names,
        class_names=classes,
        counts=tuple(counts),
        holdout_counts=tuple(held),
        holdout_fraction=config.holdout_fraction,
        fingerprints=tuple(by_part[part].fingerprint if part in by_part else "" for part in range(config.total_parts)),
    )


def misfits(said: Mapping[int, ShardSummary]) -> dict[int, str]:
    """Return, by part, in what it contradicts more than half of those that say something of it; nothing of fewer than three.

    Columns are compared first, then their names, then whether classes are numbers, each among those that fit so far.
    """
    found: dict[int, str] = {}

    def judge(name: str, told: Mapping[int, Hashable], shown: Callable[[ShardSummary], str]) -> None:
        told = {part: value for part, value in told.items() if part not in found}
        if len(told) < _FEWEST_JUDGES:
            return
        (value, votes), *_ = Counter(told.values()).most_common(1)
        if 2 * votes <= len(told):
            return
        usual = shown(next(said[part] for part in told if told[part] == value))
        for part in told:
            if told[part] != value:
                found[part] = f"does_not_fit: {name} {shown(said[part])}, those of most parts {usual}"

    judge("its columns number", {part: one.n_features for part, one in said.items()}, lambda one: str(one.n_features))
    named = {part: one.feature_names for part, one in said.items() if one.feature_names is not None}
    judge("its columns are named", named, lambda one: _shown(one.feature_names or ()))
    classed = {part: one.has_numbers for part, one in said.items() if one.class_counts}
    judge("its classes are", classed, _kind)
    return dict(sorted(found.items()))


def odd_one_out(said: Mapping[int, ShardSummary], fits: Callable[[Mapping[int, ShardSummary]], object]) -> int | None:
    """Return the one part of at least three without which the others fit; None if there is none, or several.

    Args:
        said: Of parts that do not fit together.
        fits: Raises ``BadField`` for parts that do not.
    """
    if not _FEWEST_JUDGES <= len(said) <= _MOST_TRIED:
        return None
    odd = [part for part in said if _is_fitting(fits, {one: said[one] for one in said if one != part})]
    return odd[0] if len(odd) == 1 else None


def _is_fitting(fits: Callable[[Mapping[int, ShardSummary]], object], said: Mapping[int, ShardSummary]) -> bool:
    try:
        fits(said)
    except BadField:
        return False
    return True


def _union(shards: Sequence[ShardSummary]) -> tuple[str, ...]:
    names = {name for shard in shards for name in shard.class_counts}
    if not shards[0].has_numbers:
        return tuple(sorted(names))
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        _refuse("a class name is no number, though its part says that all are")
    if not all(map(math.isfinite, values.values())) or len(set(values.values())) != len(values):
        _refuse("class names that are numbers must be finite and differ")
    return tuple(sorted(names, key=values.__getitem__))


def _kind(shard: ShardSummary) -> str:
    return "numbers" if shard.has_numbers else "words"


def _shown(names: Sequence[str]) -> str:
    text = ", ".join(name[:32] for name in names[:4])
    return ascii(text)[1:-1] + (", …" if len(names) > 4 else "")


def _refuse(message: str) -> NoReturn:
    raise BadField(f"shards do not fit together: {message}", field="shards")
