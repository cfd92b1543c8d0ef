"""A whole federation in one process: the models, strategies, cuts and seeds of the market, without market or nodes.

With ``fp32`` updates a simulation ends with the very weights that a session with the same settings and seed ends with
on one machine. All nodes' updates of a round are in memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.aggregate import Strategy, StrategyConfig, Update, check_strategy, make_strategy
from parity_fl.arbiter import Retraining
from parity_fl.attacks import Attack
from parity_fl.averaging import credited
from parity_fl.contribution import Credit, Method
from parity_fl.finishing import finish, forest_scores, indexed_importance
from parity_fl.histogram import part_rows, run_local
from parity_fl.model import TrainedModel, encode_model
from parity_fl.models import Weights, weights_digest
from parity_fl.plan import PartitionPlan
from parity_fl.privacy.combinations import PrivateSession, check_privacy
from parity_fl.privacy.config import PrivacyConfig
from parity_fl.privacy.dp import NoiseSetup
from parity_fl.privacy.noise import KEY_BYTES
from parity_fl.privacy.secure_mean import SecureMean
from parity_fl.privacy.simulated import SimulatedSums
from parity_fl.round_bodies import as_sent, decode_delta, encode_delta
from parity_fl.rounds_config import RoundsConfig, UpdateFormat, cohort_of
from parity_fl.runner import plan_session, train
from parity_fl.simulation_report import RoundRecord, SimulationReport
from parity_fl.spec import FlSpec, ForestConfig
from parity_fl.strategy import client_learning_rate
from parity_fl.table import Table
from parity_fl.training import SessionModel
from parity_fl.trees import as_forest_features, predict
from parity_protocol.errors import BadField, ExecutionFailed, FailureReason, Internal

__all__ = ["MAX_ROUNDS", "simulate"]

MAX_ROUNDS: Final = 10_000
_NAMED: Final = ("accuracy", "r2", "loss", "mse", "holdout", "oob_local_mean", "oob_federated", "ridge")
_MAX_BYTES: Final = 8 << 30  # of all updates of one round


def simulate(
    spec: FlSpec,
    data: bytes,
    *,
    seed: str,
    strategy: StrategyConfig | None = None,
    rounds: int = 1,
    fraction: float = 1.0,
    attack: Attack | None = None,
    update_format: UpdateFormat = "fp32",
    contribution: Method | None = None,
    on_round: Callable[[RoundRecord], None] | None = None,
    privacy: PrivacyConfig | None = None,
    randomness: Callable[[int], bytes] | None = None,
) -> SimulationReport:
    """Run a federation of ``spec.partition.total_parts`` nodes.

    Args:
        spec: Resolved settings.
        data: The whole data set.
        seed: 64 lower-case hex characters: the cut, the first model, who is asked and every shuffle follow from it.
        strategy: The rule; FedAvg when None. A forest and the exact linear solver have none.
        rounds: From 1 to ``MAX_ROUNDS``; a forest and the exact linear solver need one.
        fraction: Share of the parts that is asked in a round, in (0, 1].
        attack: What some of the parts do.
        update_format: How updates travel; ``fp32`` loses nothing.
        contribution: How every part is scored in every round; None scores none.
        on_round: Called after every round.
        privacy: Its switches. With differential privacy and a fraction below 1 parts are drawn by secret coins.
        randomness: Gives so many random bytes; needed with privacy, which no seed can give.

    Raises:
        BadField: The settings contradict each other or do not fit the data.
        TooFewUpdates: A round had too few usable updates for the rule.
        ExecutionFailed: ``data_invalid``: the data cannot be used; ``numerical_instability``: nobody could train.
    """
    if not 1 <= rounds <= MAX_ROUNDS:
        raise BadField(f"rounds must be from 1 to {MAX_ROUNDS}, got {rounds}", field="rounds")
    if not 0 < fraction <= 1:
        raise BadField(f"fraction must be above 0 and at most 1, got {fraction}", field="fraction")
    if attack is not None and attack.count > spec.partition.total_parts:
        raise BadField(f"{attack.count} of {spec.partition.total_parts} nodes cannot be malicious", field="attack")
    privacy = privacy or PrivacyConfig()
    if privacy.is_on and randomness is None:
        raise Internal("privacy needs randomness that nobody knows")
    plan = plan_session(spec, data, seed)
    if spec.train is None:
        facts = PrivateSession(spec.partition.total_parts, spec.model_type, _model_of(spec), None, None, None)
        check_privacy(privacy, facts)
        if privacy.is_on:
            raise BadField("a simulation has privacy for models in rounds: this one has none", field="privacy")
        if attack is not None:
            raise BadField(
                f"attacks are on updates in rounds, and this {spec.model_type} is made without: "
                "choose a neural_network, or a linear_regression by steps",
                field="attack",
            )
        if rounds != 1:
            raise BadField(f"this model is made in one round, got {rounds}", field="rounds")
        if isinstance(spec.model, ForestConfig) and spec.model.mode != "union":
            return _in_phases(spec, spec.model, plan, data, on_round)
        return _in_one_round(spec, plan, data, on_round)
    return _Federation(
        SessionModel.load(spec, plan, data),
        strategy=strategy or StrategyConfig(),
        fraction=fraction,
        attack=attack,
        update_format=update_format,
        contribution=contribution,
        privacy=privacy,
        randomness=randomness,
    ).run(rounds, on_round)


class _Federation:
    """A model that trains in rounds, with everybody's rows."""

    def __init__(
        self,
        session: SessionModel,
        *,
        strategy: StrategyConfig,
        fraction: float,
        attack: Attack | None,
        update_format: UpdateFormat,
        contribution: Method | None,
        privacy: PrivacyConfig,
        randomness: Callable[[int], bytes] | None,
    ) -> None:
        assert session.spec.train is not None  # what has none goes through ``_in_one_round``
        self._session, self._strategy, self._attack = session, strategy, attack
        self._plan = session.plan
        self._format: UpdateFormat = update_format
        self._contribution = contribution
        rate = client_learning_rate(strategy, session.spec.train.learning_rate)
        self._train = session.spec.train if rate is None else replace(session.spec.train, learning_rate=rate)
        parts = self._plan.total_parts
        needed = max(1, math.ceil(fraction * parts - 1e-9))
        self._randomness = randomness
        self._rounds = RoundsConfig(
            total_rounds=1,
            min_available_clients=needed,
            quorum=privacy.shares(parts) if privacy.secure_aggregation else needed,
            fraction=fraction,
            contribution=contribution or "none",
            update_format=update_format,
            sampling="poisson" if privacy.differential_privacy and fraction < 1 else "seed",
        )
        self.warnings = check_strategy(strategy, quorum=needed, partition_strategy=self._plan.strategy)
        facts = PrivateSession(
            parts, session.spec.model_type, _model_of(session.spec), None, self._rounds, strategy, has_eval=True
        )
        self.warnings += check_privacy(privacy, facts)
        self._private: NoiseSetup | None = None
        if privacy.differential_privacy and randomness is not None:
            self._private = NoiseSetup(privacy, fraction * parts, randomness(KEY_BYTES), fraction)
        self._secure: SimulatedSums | None = None
        if privacy.secure_aggregation and randomness is not None:
            rows = {part: self._plan.part_size(part) for part in range(parts)}
            mean = SecureMean(
                strategy,
                privacy,
                session_id=session.spec.session_id,
                parts=parts,
                rows=rows.__getitem__,
                heaviest=max(rows.values()),
                private=self._private,
            )
            self._secure = SimulatedSums(
                mean, privacy, session_id=session.spec.session_id, rows=rows, randomness=randomness
            )
        size = 4 * needed * sum(math.prod(shape) for shape in session.model.shapes().values())
        if size > _MAX_BYTES:
            raise BadField(
                f"{needed} updates of this model take {size >> 20} MiB, a simulation keeps at most"
                f" {_MAX_BYTES >> 20}: ask fewer nodes in a round, or make the model smaller",
                field="fraction",
            )
        self._malicious = frozenset[int]() if attack is None else attack.attackers(parts, self._plan.seed)
        self._misled = session
        if attack is not None and attack.name == "label_flip":
            table = replace(session.table, truth=attack.labels(session.table.truth))
            self._misled = SessionModel(session.spec, session.plan, table)
        self._left: dict[int, Weights | None] = {}

    def run(self, rounds: int, on_round: Callable[[RoundRecord], None] | None) -> SimulationReport:
        weights = self._session.first()
        rule = make_strategy(self._strategy) if self._private is None else self._private.rule(self._strategy)
        records: list[RoundRecord] = []
        for number in range(1, rounds + 1):
            start = as_sent(weights, self._format)
            if self._private is None:
                rule = self._rule_at(rule.state(), number, start)
            weights, record = self._round(rule, weights, start, number)
            records.append(record)
            if on_round is not None:
                on_round(record)
        return SimulationReport(
            model_type=self._session.spec.model_type,
            plan=self._plan,
            strategy=rule.name,
            scores=records[-1].scores,
            rounds=tuple(records),
            malicious=tuple(sorted(self._malicious)),
            warnings=tuple(self.warnings),
            model_hash=weights_digest(weights),
            model=self._file(weights),
        )

    def _file(self, weights: Weights) -> bytes:
        session, plan = self._session, self._plan
        classes = plan.class_names if session.spec.is_classification else ()
        names = session.table.dataset.feature_names
        return encode_model(TrainedModel(session.finished(weights), classes, plan.n_features, names))

    def _round(self, rule: Strategy, base: Weights, start: Weights, number: int) -> tuple[Weights, RoundRecord]:
        cohort = cohort_of(
            self._rounds,
            parts=self._plan.total_parts,
            seed=self._plan.seed,
            number=number,
            coins=self._randomness,
        )
        updates: dict[int, Update] = {}
        rejected: dict[int, str] = {}
        losses: list[tuple[float, int]] = []
        for part in cohort:
            size = self._plan.part_size(part)
            try:
                delta, loss = self._update(start, number, part)
            except ExecutionFailed as exc:
                if exc.reason != FailureReason.NUMERICAL_INSTABILITY:
                    raise
                rejected[part] = f"numerical_instability: {exc.message}"
                continue
            updates[part] = Update(part, float(size), delta)
            losses.append((loss, size))
        self._copy(updates)
        if not updates and cohort:
            raise ExecutionFailed(
                FailureReason.NUMERICAL_INSTABILITY, f"no node could train round {number}: {rejected[cohort[0]]}"
            )

        before = rule.state()
        if self._secure is None:
            done = rule.aggregate(base, lambda: iter(updates.values()), len(updates))
        else:
            done = self._secure.aggregate(base, updates)
        scores = self._scores(done.weights)
        contributions, spent = credited(
            self._credit(number),
            partial(self._rule_at, before, number, start),
            base,
            partial(_of, updates),
            done.accepted,
            self._scores,
            scores,
        )
        return done.weights, RoundRecord(
            number=number,
            cohort=cohort,
            accepted=done.accepted,
            rejected=dict(sorted({**rejected, **done.rejected}.items())),
            scores=scores,
            train_loss=None if self._private or self._secure else _mean(losses),  # it would tell what the noise hides
            metrics={**done.metrics, **spent},
            contributions=contributions,
        )

    def _credit(self, number: int) -> Credit | None:
        seed = bytes.fromhex(self._plan.seed) + number.to_bytes(4, "big")
        return None if self._contribution is None else Credit(self._contribution, seed)

    def _copy(self, updates: dict[int, Update]) -> None:
        """Replace what thieves send by what the honest part after them sends, around the circle of those that answered."""
        honest = [part for part in updates if part not in self._malicious]
        if self._attack is None or self._attack.name != "copy" or not honest:
            return
        for part in self._malicious.intersection(updates):
            victim = next((one for one in honest if one > part), honest[0])
            updates[part] = replace(updates[part], delta=updates[victim].delta)

    def _rule_at(self, state: Mapping[str, NDArray[np.float64]], number: int, start: Weights) -> Strategy:
        """Return the rule of a round, at the state before it."""
        arbiter = Retraining(
            self._session, number=number, config=self._train, proximal_mu=self._strategy.mu, start=lambda: start
        )
        rule = make_strategy(self._strategy, arbiter)
        rule.restore(state)
        return rule

    def _update(self, base: Weights, number: int, part: int) -> tuple[Weights, float]:
        """Train one part; return what the market reads of its update, and its loss on its own rows."""
        is_malicious = part in self._malicious
        session = self._misled if is_malicious else self._session
        made = session.train(part, base, number, config=self._train, proximal_mu=self._strategy.mu)
        if is_malicious and self._attack is not None:
            delta = self._attack.update(made.delta, seed=self._plan.seed, number=number, part=part)
        elif self._format == "fp32":
            delta = made.delta
        else:
            body, self._left[part] = encode_delta(made.delta, self._format, left=self._left.get(part))
            delta = decode_delta(body, self._session.model.shapes())
        return delta, made.metrics["loss"]

    def _scores(self, weights: Weights) -> dict[str, float]:
        with np.errstate(over="ignore", invalid="ignore"):
            found = self._session.score(weights)
        return {name: value for name, value in found.items() if math.isfinite(value)}


def _of(updates: Mapping[int, Update], parts: Collection[int]) -> Iterator[Update]:
    return (updates[part] for part in sorted(parts))


def _model_of(spec: FlSpec) -> Mapping[str, object]:
    found = spec.to_dict()["model_config"]
    return found if isinstance(found, Mapping) else {}


def _mean(losses: list[tuple[float, int]]) -> float | None:
    return sum(loss * size for loss, size in losses) / sum(size for _, size in losses) if losses else None


def _in_one_round(
    spec: FlSpec, plan: PartitionPlan, data: bytes, on_round: Callable[[RoundRecord], None] | None
) -> SimulationReport:
    """What nodes and market do for a forest or the exact solver: every part once, then one merge."""
    everybody = range(plan.total_parts)
    updates = [train(spec, plan, data, part).update_bytes for part in everybody]
    done = finish(spec, plan, data, updates)
    scores = {
        name: float(value)
        for name, value in done.metrics.items()
        if name in _NAMED and isinstance(value, int | float) and not isinstance(value, bool)
    }
    importance = done.metrics.get("feature_importance")
    return _reported(
        spec,
        plan,
        done.model_bytes,
        scores,
        {"bytes_up_max": float(max(map(len, updates)))},
        on_round,
        importance if isinstance(importance, dict) else {},
    )


def _in_phases(
    spec: FlSpec,
    config: ForestConfig,
    plan: PartitionPlan,
    data: bytes,
    on_round: Callable[[RoundRecord], None] | None,
) -> SimulationReport:
    """Grow a forest phase by phase (``histogram``, ``leaf_refit``), by the same bytes that would travel."""
    table = Table.load(spec, plan, data)
    run = run_local(config, [part_rows(table, plan, part) for part in range(plan.total_parts)], plan)
    held = table.assignment.holdout
    inputs = as_forest_features(table.dataset.features[held])
    guess = predict(run.forest, inputs, classification=spec.is_classification)
    found = forest_scores(table.truth[held], guess, classification=spec.is_classification)
    if run.out_of_bag is not None:
        found["oob_federated"] = run.out_of_bag.score
    model = encode_model(TrainedModel(run.forest, run.class_names, plan.n_features, table.dataset.feature_names))
    told = {
        "phases": float(run.phases),
        "bytes_down": float(run.bytes_down),
        "bytes_up_max": float(max(run.bytes_up)),
    }
    scores = {name: value for name, value in found.items() if value is not None}
    return _reported(spec, plan, model, scores, told, on_round, indexed_importance(run.forest))


def _reported(
    spec: FlSpec,
    plan: PartitionPlan,
    model: bytes,
    scores: dict[str, float],
    metrics: dict[str, float],
    on_round: Callable[[RoundRecord], None] | None,
    importance: Mapping[str, float],
) -> SimulationReport:
    """Return the report of a model that all parts made together in one round."""
    everybody = tuple(range(plan.total_parts))
    record = RoundRecord(1, everybody, everybody, rejected={}, scores=scores, metrics=metrics)
    if on_round is not None:
        on_round(record)
    return SimulationReport(
        model_type=spec.model_type,
        plan=plan,
        strategy=spec.model.mode if isinstance(spec.model, ForestConfig) else "exact",
        scores=scores,
        rounds=(record,),
        malicious=(),
        warnings=(),
        model_hash=sha256(model).hexdigest(),
        model=model,
        feature_importance=importance,
    )
