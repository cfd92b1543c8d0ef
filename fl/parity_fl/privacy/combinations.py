"""Which settings cannot stand beside a privacy switch: refused when a session is created, in words. No NumPy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from parity_fl.fields import fail
from parity_fl.privacy.config import MAX_SECURE_PARTS, PLACE, PrivacyConfig, fewest_shares, read_privacy
from parity_fl.rounds_config import RoundsConfig
from parity_fl.strategy import ROBUST, STRATEGIES, StrategyConfig

__all__ = ["WAIVED", "PrivateSession", "check_privacy", "session_privacy"]

WAIVED = (
    "secure aggregation waives all that is said about malicious nodes: the market sees no single update, so it cannot"
    " reject one that is made up, a copy, or in the wrong direction; only its length is bounded, by the node that sends it"
)
_DP = f"{PLACE}.differential_privacy"
_SECURE = f"{PLACE}.secure_aggregation"


@dataclass(frozen=True, slots=True)
class PrivateSession:
    """What else a session says.

    Attributes:
        parts: How many.
        model_type: ``neural_network``, ``linear_regression`` or ``random_forest``.
        model: Its ``model_config``, as submitted.
        data_mode: ``partitioned`` or ``sharded``; None in a simulation, where one process has everything.
        rounds: Its rounds; None for a model that is made in one, without a base model.
        strategy: Its rule; None for such a model.
        holdout_fraction: Share of every part's rows that only scores.
        has_eval: Scores come from data of their own.
    """

    parts: int
    model_type: str
    model: Mapping[str, object]
    data_mode: str | None
    rounds: RoundsConfig | None
    strategy: StrategyConfig | None
    holdout_fraction: float = 0.0
    has_eval: bool = False

    @property
    def forest_mode(self) -> str | None:
        """Of a forest; None of anything else."""
        return str(self.model.get("mode") or "union") if self.model_type == "random_forest" else None


def check_privacy(privacy: PrivacyConfig, session: PrivateSession) -> list[str]:
    """Check a session's privacy switches against everything else it says.

    Returns:
        What people should be told: what a switch does not protect, and what it takes away.

    Raises:
        BadField: A combination that cannot keep what the switch promises; the message says why.
    """
    if not privacy.is_on:
        if session.rounds is not None and session.rounds.sampling == "poisson":
            fail("rounds_config.sampling", "sampling poisson is for differential_privacy: nothing else needs its coins")
        return []
    if session.data_mode not in {None, "sharded"}:
        fail(
            PLACE,
            "privacy needs data_mode sharded: in a partitioned session every node and the market read the whole data"
            " set, so there is nothing left to protect",
            hint="Name where each part's data lie, `parity fl run --shard SOURCE` once per part, instead of one data set.",
        )
    warnings: list[str] = []
    if privacy.differential_privacy:
        warnings += _check_dp(privacy, session)
    if privacy.secure_aggregation:
        warnings += _check_secure(privacy, session)
    return warnings


def session_privacy(
    session: Mapping[str, object], *, parts: int, rounds: RoundsConfig | None, strategy: StrategyConfig | None
) -> tuple[PrivacyConfig, list[str]]:
    """Return a submitted session's privacy switches, checked against the rest of it, and what people should be told.

    Args:
        session: ``FederatedLearningSpec.session()``.
        parts: How many it has.
        rounds: From ``read_session_rounds``; None for one that does not train in rounds.
        strategy: From ``session_strategy``; None likewise.

    Raises:
        BadField: As ``read_privacy`` and ``check_privacy``.
    """
    privacy = read_privacy(session.get("privacy") or None)
    model, holdout = session.get("model_config"), session.get("holdout_fraction")
    facts = PrivateSession(
        parts=parts,
        model_type=str(session.get("model_type")),
        model=model if isinstance(model, Mapping) else {},
        data_mode=str(session.get("data_mode", "partitioned")),
        rounds=rounds,
        strategy=strategy,
        holdout_fraction=float(holdout) if isinstance(holdout, int | float) else 0.0,
        has_eval=bool(session.get("eval_cid")),
    )
    return privacy, check_privacy(privacy, facts)


def _check_dp(privacy: PrivacyConfig, session: PrivateSession) -> list[str]:
    rounds, strategy = session.rounds, session.strategy
    if rounds is None or strategy is None or session.forest_mode or session.model.get("solver") == "exact":
        what = "a forest" if session.forest_mode else "the exact solver"
        fail(_DP, f"differential_privacy adds noise to updates in rounds: {what} has none")
    shown = STRATEGIES[strategy.strategy]
    if strategy.strategy in ROBUST:
        fail(
            _DP,
            f"differential_privacy needs a rule that is a mean (FedAvg, FedProx, FedAdam, FedYogi, FedAvgM): under {shown}"
            " one update decides which others count, so noise for one clip norm does not cover it",
        )
    if strategy.weighting == "samples":
        fail(
            _DP,
            "differential_privacy needs weighting uniform: with weights a part with many rows changes the mean by more than"
            " the noise covers",
        )
    _need_plain_means(_DP, "differential_privacy", strategy)
    if rounds.contribution != "none":
        fail(
            _DP,
            "differential_privacy allows no score of a single part: contribution must be none,"
            f" got {rounds.contribution}",
        )
    if rounds.fraction < 1 and rounds.sampling != "poisson":
        fail(
            _DP,
            f"differential_privacy needs fraction 1, got {rounds.fraction:g}: who is asked follows from a seed that"
            " everybody knows, so it hides nobody; with rounds_config.sampling poisson each part is drawn by a secret coin"
            " and the fraction counts",
        )
    if rounds.sampling == "poisson" and privacy.secure_aggregation:
        fail(
            _SECURE,
            "sampling poisson and secure_aggregation exclude each other: too few may be drawn for its threshold",
        )
    if rounds.over_selection:
        fail(_DP, "differential_privacy needs over_selection 0: a part that answers first would displace another")
    privacy.sum_noise(rounds.fraction * session.parts)
    warnings = []
    if strategy.max_norm_ratio != StrategyConfig().max_norm_ratio:
        warnings.append("max_norm_ratio is ignored: differential privacy clips every update instead")
    if privacy.at_delta >= 1 / session.parts:
        warnings.append(
            f"delta {privacy.at_delta:g} is not below 1 / {session.parts} parts: a guarantee at it may leave one part bare"
        )
    if session.holdout_fraction > 0 and not session.has_eval:
        warnings.append(
            "scores on the parts' own hold-out rows are told without noise and are not in epsilon: name data to score"
            " with (eval_cid), or set holdout_fraction 0"
        )
    if not privacy.secure_aggregation:
        warnings.append(
            "differential privacy is central: the market itself sees every update before the noise; secure_aggregation"
            " hides them from it"
        )
    return warnings


def _check_secure(privacy: PrivacyConfig, session: PrivateSession) -> list[str]:
    parts, least = session.parts, fewest_shares(session.parts)
    if session.model.get("solver") == "exact" and session.model.get("standardize") is False:
        fail(
            _SECURE,
            "secure_aggregation of an exact line needs standardize: only in units of their common deviation is it known"
            " how large sums can be",
        )
    if session.forest_mode in {"union", "leaf_refit"}:
        fail(
            _SECURE,
            f"secure_aggregation adds up numbers: a forest of mode {session.forest_mode} hands over whole trees; mode"
            " histogram has counts",
        )
    if not 3 <= parts <= MAX_SECURE_PARTS:
        fail(
            _SECURE,
            f"secure_aggregation needs 3 to {MAX_SECURE_PARTS} parts, got {parts}: of a sum of two each knows the other's",
        )
    threshold = privacy.shares(parts)
    if not least <= threshold <= parts:
        fail(
            f"{PLACE}.threshold",
            f"threshold must be from {least} to {parts} for {parts} parts, got {threshold}: at half of the parts or"
            " fewer a market could ask two halves for what together opens an update",
        )
    rounds, strategy = session.rounds, session.strategy
    if strategy is not None:
        shown = STRATEGIES[strategy.strategy]
        if strategy.strategy in ROBUST:
            fail(
                _SECURE,
                f"secure_aggregation shows the market a sum and no single update: {shown} compares single updates; use a"
                " rule that is a mean (FedAvg, FedProx, FedAdam)",
            )
        _need_plain_means(_SECURE, "secure_aggregation", strategy)
    if rounds is not None:
        if rounds.contribution != "none":
            fail(
                _SECURE,
                f"secure_aggregation has no update to leave out: contribution must be none, got {rounds.contribution}",
            )
        if rounds.update_format != "fp32":
            fail(
                _SECURE,
                f"secure_aggregation sends whole numbers of 32 bits under a mask: update_format {rounds.update_format}"
                " cannot be added up; leave it out",
            )
        if rounds.fraction < 1 or rounds.over_selection:
            fail(_SECURE, "secure_aggregation needs fraction 1 and over_selection 0: its threshold is of all parts")
        if rounds.quorum < threshold:
            fail(
                _SECURE,
                f"secure_aggregation cannot unmask with fewer than threshold {threshold} parts: quorum must be at least"
                f" that, got {rounds.quorum}",
            )
    warnings = [WAIVED]
    if 3 * threshold <= 2 * parts:
        warnings.append(
            f"threshold {threshold} of {parts} holds against a malicious market only while fewer than"
            f" {2 * threshold - parts} nodes work with it; {2 * parts // 3 + 1} allows a third"
        )
    return warnings


def _need_plain_means(place: str, switch: str, strategy: StrategyConfig) -> None:
    if strategy.pre_aggregation != "none":
        fail(place, f"{switch} excludes pre_aggregation {strategy.pre_aggregation}: mixing compares single updates")
    if strategy.clip != "none":
        fail(place, f"{switch} excludes clip {strategy.clip}: it compares the lengths of single updates")
