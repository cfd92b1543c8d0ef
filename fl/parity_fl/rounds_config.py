"""How a session's rounds run: how many parts are asked, when a round closes, how updates travel.

No NumPy is imported: creation and the idle node check a session with this. Who is asked in a round follows from the
session's seed alone, so anybody can recompute it; under Poisson sampling it is drawn in secret.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Final, Literal, NoReturn, TypeAlias

from parity_fl.fields import Section, fail
from parity_fl.limits import MAX_ID_CHARS, MAX_PARTS
from parity_fl.partition_config import SHARDED
from parity_fl.privacy.config import read_privacy
from parity_fl.strategy import StrategyConfig, check_strategy, client_learning_rate, read_strategy
from parity_protocol.errors import Internal

__all__ = [
    "RoundsConfig",
    "UpdateFormat",
    "cohort_of",
    "is_due",
    "is_in_rounds",
    "is_phased",
    "is_sharded",
    "read_rounds",
    "read_session_rounds",
    "refuse_resume",
    "session_strategy",
]

UpdateFormat: TypeAlias = Literal["fp32", "fp16", "int8"]

_ROUND_TIMEOUT_S: Final = 600.0
_MAX_TIMEOUT_S: Final = 86_400.0
_PLACE: Final = "rounds_config"
_QUORUM_SHARE: Final = 2 / 3
_MAX_INTERVAL: Final = 10_000
_MAX_PERMUTATIONS: Final = 100_000
_MAX_SHAPLEY_S: Final = 300.0  # half of what a job of the market's worker may take
_COIN_BYTES: Final = 8
_COIN_SIDES: Final = 1 << (8 * _COIN_BYTES)


@dataclass(frozen=True, slots=True)
class RoundsConfig:
    """A session's rounds, everything explicit.

    Attributes:
        total_rounds: Rounds of the session.
        min_available_clients: Parts that nodes must hold before a round's clock runs; default 2, or all if fewer.
        fraction: Share of the parts that a round needs, in (0, 1]; default 1.
        over_selection: Asked beyond that, as a share of it, in [0, 1]; the round closes with the first that answer.
        quorum: Fewest accepted updates with which a round closes; default two thirds of what it needs.
        round_timeout_s: From a round's opening to its deadline, seconds; default 600.
        update_format: How updates travel: ``fp32``, ``fp16`` (default) or ``int8`` with error feedback.
        contribution: How each part is scored on the hold-out in every round: ``leave_one_out``; ``shapley``; ``none``.
        shapley_permutations: Orders of the parts that are tried in a round at most; default 100.
        shapley_seconds: That a round's ``shapley`` may take at most; default 30.
        base_share: Part of the reward that is paid for taking part; the rest follows the contribution, in [0, 1];
            default 1.
        checkpoint_interval: Rounds between two checkpoints; 0 keeps only the newest state.
        resume_from: CID of a checkpoint that the session goes on from, in its next round; empty begins with round 1.
        sampling: ``seed``: who is asked follows from the plan's seed. ``poisson``: each part is asked with chance
            ``fraction``, independently, by coins that only the market knows; differential privacy counts on that.
    """

    total_rounds: int
    min_available_clients: int
    quorum: int
    fraction: float = 1.0
    over_selection: float = 0.0
    round_timeout_s: float = _ROUND_TIMEOUT_S
    update_format: UpdateFormat = "fp16"
    contribution: Literal["none", "leave_one_out", "shapley"] = "none"
    shapley_permutations: int = 100
    shapley_seconds: float = 30.0
    base_share: float = 1.0
    checkpoint_interval: int = 0
    resume_from: str = ""
    sampling: Literal["seed", "poisson"] = "seed"

    def needed(self, parts: int) -> int:
        """Return with how many updates a round of ``parts`` closes before its deadline, or with its whole cohort."""
        if self.sampling == "poisson":
            return parts  # whoever was drawn: to close without one because of another would tie the two together
        return max(1, self.quorum, math.ceil(self.fraction * parts - 1e-9))

    def to_dict(self) -> dict[str, object]:
        """Return the members, JSON-ready; ``from_dict`` reads them back to an equal config."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, object], *, parts: int) -> RoundsConfig:
        """Read what ``to_dict`` wrote.

        Raises:
            BadField: It is something else.
        """
        rest = {name: value for name, value in raw.items() if name != "total_rounds"}
        total = raw.get("total_rounds")
        if type(total) is not int:
            fail("total_rounds", "total_rounds must be a whole number")
        return read_rounds(rest, total_rounds=total, parts=parts)


def is_in_rounds(session: Mapping[str, object]) -> bool:
    """Return whether a submitted session trains in rounds: every network does, a forest that is made in phases too.

    A linear model does with more than one, or when ``rounds_config`` says how its one round runs.

    The exact solver never does: its one round is an ordinary session, and more than one are refused at creation. Whatever
    is sharded does: its parts have something to agree on first.

    Args:
        session: ``FederatedLearningSpec.session()``.
    """
    if is_sharded(session):
        return True
    match session.get("model_type"):
        case "neural_network":
            return True
        case "linear_regression":
            settings = session.get("model_config")
            asks = session.get("total_rounds", 1) != 1 or bool(session.get("rounds_config"))
            return asks and not _is_exact(settings)
        case "random_forest":
            return is_phased(session)
        case _:
            return False


def is_sharded(session: Mapping[str, object]) -> bool:
    """Return whether every part of a submitted session has rows of its own."""
    return session.get("data_mode") == SHARDED


def is_phased(session: Mapping[str, object]) -> bool:
    """Return whether a submitted session is made once, of every part: a forest in phases, or what is exact on shards."""
    model = session.get("model_config")
    if is_sharded(session):
        return session.get("model_type") == "random_forest" or _is_exact(model)
    mode = model.get("mode", "union") if isinstance(model, Mapping) else "union"
    return session.get("model_type") == "random_forest" and mode not in {None, "union"}


def read_session_rounds(session: Mapping[str, object], *, parts: int) -> RoundsConfig:
    """Check the rounds of a submitted session for which ``is_in_rounds`` holds.

    Raises:
        BadField: As ``read_rounds``; or a forest has more than one round, or would leave parts out; or shards whose market
            has no data are to be scored by what the model would be without them.
    """
    total = session.get("total_rounds", 1)
    if type(total) is not int:
        fail("total_rounds", "total_rounds must be a whole number")
    raw = session.get("rounds_config") or {}
    if not is_phased(session):
        privacy = read_privacy(session.get("privacy") or None)
        if privacy.secure_aggregation and isinstance(raw, dict):  # its own defaults; what is given is checked later
            raw = {"update_format": "fp32", "quorum": min(privacy.shares(parts), parts), **raw}
        config = read_rounds(raw, total_rounds=total, parts=parts)
        if config.contribution != "none" and is_sharded(session) and not session.get("eval_cid"):
            fail(
                f"{_PLACE}.contribution",
                f"contribution {config.contribution} needs eval_cid in a sharded session: the market has no rows to score"
                " parts with",
            )
        return config
    made = "a forest is made once, in phases" if session.get("model_type") == "random_forest" else "it is solved once"
    if total != 1:
        fail("total_rounds", f"total_rounds must be 1: {made}, got {total}")
    if isinstance(raw, Mapping):
        privacy = read_privacy(session.get("privacy") or None)
        own = {"update_format": "fp32"} if privacy.secure_aggregation else {}
        raw = {"quorum": parts, "min_available_clients": parts, **own, **raw}
    config = read_rounds(raw, total_rounds=1, parts=parts)
    if config.resume_from:
        refuse_resume("a forest in phases")
    if config.quorum != parts or config.fraction != 1 or config.checkpoint_interval or config.contribution != "none":
        fail(
            _PLACE,
            f"{made}, with every part: quorum, fraction, contribution and checkpoint_interval mean nothing to it",
        )
    return config


def read_rounds(raw: object, *, total_rounds: int, parts: int) -> RoundsConfig:
    """Check a session's ``rounds_config``.

    Raises:
        BadField: The first member that is wrong, or members that contradict each other.
    """
    known = tuple(name for name in RoundsConfig.__dataclass_fields__ if name != "total_rounds")
    section = Section.open(raw, _PLACE, known)
    fraction = _share(section, "fraction", 1.0)
    if fraction == 0:
        section.refuse("fraction", "must be above 0 and at most 1, got 0.0")
    timeout_s = section.number("round_timeout_s", _ROUND_TIMEOUT_S)
    if not 1 <= timeout_s <= _MAX_TIMEOUT_S:
        section.refuse("round_timeout_s", f"must be from 1 to {_MAX_TIMEOUT_S:g}, got {timeout_s:g}")
    needed = max(1, math.ceil(fraction * parts - 1e-9))
    least = section.whole("min_available_clients", 1, MAX_PARTS, min(2, parts))
    if least > parts:
        section.refuse("min_available_clients", f"must be at most the number of parts, {parts}, got {least}")
    is_drawn = section.get("sampling") == "poisson"
    quorum = section.whole("quorum", 1, MAX_PARTS, 1 if is_drawn else math.ceil(needed * _QUORUM_SHARE - 1e-9))
    if quorum > needed:
        section.refuse("quorum", f"must be at most the {needed} updates that a round needs, got {quorum}")
    update_format = section.choice("update_format", ("fp32", "fp16", "int8"), "fp16")
    scored = section.choice("contribution", ("none", "leave_one_out", "shapley"), "none")
    seconds = section.number("shapley_seconds", 30.0)
    if not 0 < seconds <= _MAX_SHAPLEY_S:
        section.refuse("shapley_seconds", f"must be above 0 and at most {_MAX_SHAPLEY_S:g}, got {seconds:g}")
    return RoundsConfig(
        total_rounds=total_rounds,
        min_available_clients=least,
        quorum=quorum,
        fraction=fraction,
        over_selection=_share(section, "over_selection", 0.0),
        round_timeout_s=timeout_s,
        update_format="fp32" if update_format == "fp32" else "int8" if update_format == "int8" else "fp16",
        contribution="leave_one_out" if scored == "leave_one_out" else "shapley" if scored == "shapley" else "none",
        shapley_permutations=section.whole("shapley_permutations", 1, _MAX_PERMUTATIONS, 100),
        shapley_seconds=seconds,
        base_share=_share(section, "base_share", 1.0),
        sampling="poisson" if section.choice("sampling", ("seed", "poisson"), "seed") == "poisson" else "seed",
        checkpoint_interval=section.whole("checkpoint_interval", 0, _MAX_INTERVAL, 0),
        resume_from="" if section.get("resume_from") in (None, "") else section.text("resume_from", MAX_ID_CHARS),
    )


def refuse_resume(what: str) -> NoReturn:
    """Refuse ``resume_from`` of a session that has no rounds to go on with."""
    fail(f"{_PLACE}.resume_from", f"resume_from: {what} is made at once, there are no rounds to go on with")


def is_due(number: int, *, interval: int, total_rounds: int) -> bool:
    """Return whether round ``number`` ends with a checkpoint: every ``interval`` rounds and at the end."""
    return number % interval == 0 or number == total_rounds


def session_strategy(
    session: Mapping[str, object], rounds: RoundsConfig, *, partition_strategy: str
) -> tuple[StrategyConfig, list[str]]:
    """Return a submitted session's rule, checked against its quorum, and what people should be told of it.

    Raises:
        BadField: The rule is not known, a parameter is wrong, the quorum cannot carry it, or it names another learning
            rate than the training parameters.
    """
    strategy = read_strategy(session.get("strategy_config") or None)
    training = session.get("train_config")
    rate = training.get("learning_rate") if isinstance(training, Mapping) else None
    if isinstance(rate, (int, float)):  # what is none is refused with the training parameters
        client_learning_rate(strategy, float(rate))
    return strategy, check_strategy(strategy, quorum=rounds.quorum, partition_strategy=partition_strategy)


def cohort_of(
    config: RoundsConfig, *, parts: int, seed: str, number: int, coins: Callable[[int], bytes] | None = None
) -> tuple[int, ...]:
    """Return the parts that are asked in a round, ascending; for fraction 1 all.

    Parts are ordered by SHA-256 of seed, round and part, so the choice is uniform and the same for everybody. Under
    Poisson sampling each part has a coin of its own, and there may be none at all.

    Args:
        seed: The plan's, 64 hex characters.
        number: Of the round, from 1.
        coins: Gives so many random bytes that nobody else knows; for Poisson sampling.

    Raises:
        Internal: Poisson sampling without coins.
    """
    if config.sampling == "poisson":
        if coins is None:
            raise Internal("Poisson sampling needs secret coins")
        below = int(config.fraction * _COIN_SIDES)
        return tuple(part for part in range(parts) if int.from_bytes(coins(_COIN_BYTES), "big") < below)
    wanted = min(parts, math.ceil(config.needed(parts) * (1 + config.over_selection) - 1e-9))
    if wanted == parts:
        return tuple(range(parts))
    prefix = b"parity-fl/cohort/1\x00" + bytes.fromhex(seed) + number.to_bytes(4, "big")
    order = sorted(range(parts), key=lambda part: sha256(prefix + part.to_bytes(4, "big")).digest())
    return tuple(sorted(order[:wanted]))


def _is_exact(settings: object) -> bool:
    return isinstance(settings, Mapping) and settings.get("solver") == "exact"


def _share(section: Section, name: str, default: float) -> float:
    value = section.number(name, default)
    if not 0 <= value <= 1:
        section.refuse(name, f"must be from 0 to 1, got {value:g}")
    return value
