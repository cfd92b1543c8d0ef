"""The first phase of a sharded session at the market: what each part said, and the one plan that is made of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from parity_fl.averaging import Bodies, Refused
from parity_fl.session import ShardTerms
from parity_fl.shard_plans import misfits, odd_one_out, plan_shards
from parity_fl.sharded.bodies import decode_json
from parity_fl.sharded.kinds import check_plan
from parity_fl.shards import ShardPlan, ShardSummary
from parity_fl.spec import FlSpec, ForestConfig
from parity_protocol.errors import BadDocument, BadField, ParityError

__all__ = ["agree", "fewest_parts", "missing"]


def fewest_parts(spec: FlSpec, parts: int, quorum: int | None) -> int:
    """Return with how many parts a session may begin: its quorum, where one part's answer can be missed at all.

    A forest, an exact line and secure sums are made of all parts, and noise was promised for all.

    Args:
        parts: How many there are.
        quorum: Of its rounds; None needs all.
    """
    return parts if quorum is None or spec.train is None or spec.privacy.is_on else quorum


def missing(what: str, there: Collection[int], parts: int, least: int, rejected: dict[int, str]) -> Refused | None:
    """Return why a phase in which parts agree cannot close; None when it can.

    What was refused may come again, from another node: only when it did not in time, the session goes on without.

    Args:
        what: The parts told, for people.
        there: Parts whose answers are good.
        parts: How many there should be.
        least: With how many of them the session may go on.
        rejected: Reasons, by part.
    """
    if not rejected and len(there) >= min(least, parts):
        return None
    reasons = "; ".join(f"part {part}: {why}" for part, why in list(rejected.items())[:3])
    return Refused(f"the {what} of all {parts} parts must be known{f' ({reasons})' if reasons else ''}", rejected)


def agree(spec: FlSpec, terms: ShardTerms, updates: Bodies, *, least: int) -> ShardPlan | Refused:
    """Make one plan of what the nodes said of their shards.

    A part that contradicts the signed settings or the majority, or without which alone the others fit, is refused.

    Args:
        least: With how many parts the session may begin, if nobody has a good answer for the others.

    Raises:
        BadField: The shards do not fit together, and nobody can say which one is wrong.
    """
    said: dict[int, ShardSummary] = {}
    rejected: dict[int, str] = {}
    for part in sorted(updates):
        try:
            said[part] = _read(spec, part, updates[part]())
        except ParityError as exc:
            rejected[part] = f"malformed: {exc.message}"
    rejected |= _unlike_signed(spec, said)
    rejected |= misfits({part: one for part, one in said.items() if part not in rejected})
    said = {part: one for part, one in said.items() if part not in rejected}
    told = missing("shards", said, terms.total_parts, least, dict(sorted(rejected.items())))
    if told is not None:
        return told
    try:
        return _planned(spec, terms, said)
    except BadField as exc:
        odd = odd_one_out(said, partial(_planned, spec, terms))
        if odd is None:
            raise
        reason = f"does_not_fit: {exc.message}"
        return Refused(f"one part does not fit the others ({reason})", {odd: reason})


def _planned(spec: FlSpec, terms: ShardTerms, said: Mapping[int, ShardSummary]) -> ShardPlan:
    absent = set(range(terms.total_parts)) - set(said)
    plan = plan_shards(
        spec.partition, list(said.values()), seed=terms.seed, classification=spec.is_classification, absent=absent
    )
    check_plan(spec, plan)
    return plan


def _read(spec: FlSpec, part: int, body: bytes | memoryview) -> ShardSummary:
    summary = ShardSummary.from_dict(decode_json(body))
    if summary.part != part:
        raise BadDocument(f"it is of part {summary.part}")
    if bool(summary.class_counts) != spec.is_classification:
        raise BadDocument("it counts classes" if summary.class_counts else "it counts no classes")
    return summary


def _unlike_signed(spec: FlSpec, said: Mapping[int, ShardSummary]) -> dict[int, str]:
    """Return the parts whose columns are not those that the settings name; none if they are no part's."""
    width = 0 if isinstance(spec.model, ForestConfig) else spec.model.input_size
    unlike = {
        part: f"does_not_fit: it has {one.n_features} features, the session's model takes {width}"
        for part, one in said.items()
        if width and one.n_features != width
    }
    return unlike if len(unlike) < len(said) else {}
