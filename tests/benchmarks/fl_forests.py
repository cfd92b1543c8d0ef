"""How good federated forests are under the worst cut, and what they send."""

from __future__ import annotations

from statistics import mean

from sklearn.ensemble import RandomForestClassifier
from threadpoolctl import threadpool_limits

from benchmarks.figures import Aim, Figure
from benchmarks.fl_tables import DECIMALS, forest, seed_of, table
from parity_fl.runner import plan_session
from parity_fl.simulate import simulate
from parity_fl.table import Table

__all__ = ["forests"]

MODES = ("union", "leaf_refit", "histogram")
SKEWED = {"strategy": "non_iid", "alpha": 0.1, "total_parts": 10}


def forests(seeds: int) -> list[Figure]:
    """Return union and histogram forests of 10 nodes, Dirichlet 0.1, beside scikit-learn's of all rows."""
    found: list[Figure] = []
    with threadpool_limits(1):
        for name in ("digits", "breast cancer"):
            found += _of(name, table(name), seeds)
    return found


def _of(name: str, data: bytes, seeds: int) -> list[Figure]:
    central: list[float] = []
    scores: dict[str, list[float]] = {mode: [] for mode in MODES}
    sent = dict.fromkeys(MODES, 0.0)
    differ = 0
    for number in range(1, seeds + 1):
        seed = seed_of(number)
        central.append(_sklearn(data, seed, number))
        for mode in MODES:
            made = simulate(forest(SKEWED, mode), data, seed=seed)
            scores[mode].append(made.accuracy or 0.0)
            sent[mode] = max(sent[mode], made.rounds[0].metrics["bytes_up_max"])
        one = simulate(forest({"strategy": "random", "total_parts": 1}, MODES[-1]), data, seed=seed)
        differ += made.model_hash != one.model_hash
    what = f"forest, {name}"
    gap = 100 * mean(there - here for there, here in zip(central, scores["histogram"], strict=True))
    how = f"{seeds} seeds, 100 trees of depth 10, 10 nodes, Dirichlet 0.1"
    found = [
        Figure(f"{what}, scikit-learn's of all rows", round(100 * mean(central), DECIMALS), "%", note=f"{seeds} seeds")
    ]
    for mode in MODES:
        found.append(Figure(f"{what}, {mode}", round(100 * mean(scores[mode]), DECIMALS), "%", note=how))
        found.append(Figure("  sent by a node", round(sent[mode] / 1e3, 1), "kB", note="the node that sends most"))
    behind = f"histogram behind scikit-learn's; {gap:.4f}"
    return [
        *found,
        Figure("  points lost", round(gap, DECIMALS), "points", Aim(0.5, "at most"), behind),
        Figure("  not the bytes of one node", differ, "forests", Aim(0, "at most"), "histogram, 10 nodes against one"),
    ]


def _sklearn(data: bytes, seed: str, number: int) -> float:
    spec = forest({"strategy": "random", "total_parts": 1}, "union")
    found = Table.load(spec, plan_session(spec, data, seed), data)
    rows, held = found.assignment.parts[0], found.assignment.holdout
    model = RandomForestClassifier(100, max_depth=10, random_state=number, n_jobs=1)
    model.fit(found.dataset.features[rows], found.truth[rows])
    return float(model.score(found.dataset.features[held], found.truth[held]))
