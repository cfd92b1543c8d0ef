"""A whole sharded session in one process: the market's side and every node's, with the bytes that would travel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from typing import Final

from parity_fl.averaging import Reduced, Refused, TrainedRound
from parity_fl.rounds_config import UpdateFormat, cohort_of, read_rounds
from parity_fl.session import ShardTerms
from parity_fl.sharded import ShardedServer, ShardedTrainer
from parity_fl.simulate import MAX_ROUNDS
from parity_fl.simulation_report import RoundRecord, SimulationReport
from parity_fl.spec import FlSpec, ForestConfig
from parity_fl.strategy import STRATEGIES, StrategyConfig, check_strategy
from parity_protocol.errors import BadField, TooFewUpdates

__all__ = ["simulate_shards"]

_SALT: Final = b"simulation"  # nobody is kept from anything here
_SCORES: Final = ("accuracy", "r2", "loss", "mse")


def simulate_shards(
    spec: FlSpec,
    shards: Sequence[bytes],
    *,
    seed: str,
    strategy: StrategyConfig | None = None,
    rounds: int = 1,
    fraction: float = 1.0,
    update_format: UpdateFormat = "fp32",
    on_round: Callable[[RoundRecord], None] | None = None,
) -> SimulationReport:
    """Run a sharded session as a market and its nodes would.

    Args:
        spec: Resolved settings of a sharded session.
        shards: Each part's data.
        seed: 64 lower-case hex characters: hold-outs, first model, who is asked and every shuffle follow from it.
        strategy: The rule; FedAvg when None. A forest and the exact linear solver have none.
        rounds: From 1 to ``MAX_ROUNDS``; a forest and the exact linear solver need one.
        fraction: Share of the parts that is asked in a round, in (0, 1].
        update_format: How updates travel; ``fp32`` loses nothing.
        on_round: Called after every round.

    Raises:
        BadField: The settings contradict each other, or the shards do not fit together; the message names the part.
        TooFewUpdates: A round had too few usable answers.
        ExecutionFailed: The data cannot be used, or training diverges.
    """
    once = spec.train is None
    if not 1 <= rounds <= (1 if once else MAX_ROUNDS):
        raise BadField(f"rounds must be from 1 to {1 if once else MAX_ROUNDS}, got {rounds}", field="rounds")
    rule = strategy or StrategyConfig()
    parts = len(shards)
    config = read_rounds({"fraction": 1.0 if once else fraction}, total_rounds=rounds, parts=parts)
    warnings = [] if once else check_strategy(rule, quorum=config.needed(parts), partition_strategy="sharded")
    terms = ShardTerms(parts, seed)
    server = ShardedServer(spec, terms, rule)
    nodes = [ShardedTrainer(spec, terms, shard, part, salt=_SALT) for part, shard in enumerate(shards)]
    base, state, states, asks, number = server.first(), None, b"", "summary", 0
    records: list[RoundRecord] = []
    trained: tuple[Reduced, dict[int, TrainedRound]] | None = None
    while number <= rounds:
        cohort = cohort_of(config, parts=parts, seed=seed, number=number) if number else range(parts)
        answers = {
            part: nodes[part].answer(asks, base, number=number, proximal_mu=rule.mu, update_format=update_format)
            for part in cohort
        }
        done = server.reduce(
            base,
            state,
            {part: partial(bytes, answer.update) for part, answer in answers.items()},
            states=partial(bytes, states) if states else None,
        )
        if isinstance(done, Refused) and not number:  # nobody else has these shards: the submitter must look
            raise BadField(done.reason, field="shards")
        if isinstance(done, Refused):
            raise TooFewUpdates(f"round {number}: {done.reason}", rejected=done.rejected)
        if asks == "train":
            trained = done, answers
        base, state, asks = done.model, done.state, done.asks
        states = states + done.state if done.appends else done.state
        if done.more_phases:
            continue
        if trained is not None:
            records.append(_record(number, *trained, done))
            if on_round is not None:
                on_round(records[-1])
        number, trained = number + 1, None
    assert state is not None
    final = server.final(base, state, rounds=rounds)
    scores = {name: float(value) for name, value in final.metrics.items() if isinstance(value, float)}
    importance = final.metrics.get("feature_importance")
    name = spec.model.mode if isinstance(spec.model, ForestConfig) else "exact" if once else STRATEGIES[rule.strategy]
    return SimulationReport(
        model_type=spec.model_type,
        plan=server.plan_of(state),
        strategy=name,
        scores=scores,
        rounds=tuple(records),
        malicious=(),
        warnings=tuple(warnings),
        model_hash=sha256(final.model_bytes).hexdigest(),
        model=final.model_bytes,
        feature_importance=importance if isinstance(importance, dict) else {},
    )


def _record(number: int, trained: Reduced, answers: dict[int, TrainedRound], last: Reduced) -> RoundRecord:
    """Return what happened in a round, from its training and its last phase, which has the scores."""
    losses = [(said["loss"], said["samples"]) for said in (one.metrics for one in answers.values()) if "loss" in said]
    rows = sum(count for _, count in losses)
    return RoundRecord(
        number=number,
        cohort=tuple(sorted(answers)),
        accepted=trained.accepted,
        rejected=trained.rejected,
        scores={name: last.metrics[name] for name in _SCORES if name in last.metrics},
        train_loss=sum(loss * count for loss, count in losses) / rows if rows else None,
        metrics={name: value for name, value in last.metrics.items() if name not in _SCORES},
        contributions=trained.contributions,
    )
