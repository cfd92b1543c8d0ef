"""What training and encoding cost on one thread, beside scikit-learn."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from benchmarks.figures import Aim, Figure
from benchmarks.fl_tables import HIDDEN, RATE, network, seed_of, table
from parity_fl.aggregate import StrategyConfig, Update, make_strategy
from parity_fl.codec import decode_delta, encode_delta
from parity_fl.runner import plan_session
from parity_fl.training import SessionModel

__all__ = ["kernels"]

REPEATS = 15
WIDTH = 10_000_000  # parameters
NODES = 10


def kernels() -> list[Figure]:
    """Return an epoch of a small network, a large update encoded and decoded, and ten of them averaged."""
    with threadpool_limits(1):
        return [*_epoch(), *_codec(), *_average()]


def _epoch() -> list[Figure]:
    data = table("digits")
    spec = network({"strategy": "random", "total_parts": 1, "holdout_fraction": 0.0}, epochs=1)
    session = SessionModel.load(spec, plan_session(spec, data, seed_of(1)), data)
    weights, features, truth = session.first(), session.table.dataset.features, session.table.truth
    assert spec.train is not None
    config = spec.train
    ours = _best(lambda: session.model.train(weights, features, truth, config, seed=bytes(32)))
    peer = MLPClassifier((HIDDEN,), solver="sgd", learning_rate_init=RATE, batch_size=32, momentum=0.0)
    peer.partial_fit(features, truth, classes=np.unique(truth))
    theirs = _best(lambda: peer.partial_fit(features, truth))
    rows = f"{len(truth)} rows, 64-{HIDDEN}-10, batches of 32, processor time, fastest of {REPEATS}"
    return [
        Figure("network, one epoch of digits", ours * 1e3, "ms", Aim(6, "at most"), rows),
        Figure("  scikit-learn's partial_fit", theirs * 1e3, "ms", note=rows),
    ]


def _codec() -> list[Figure]:
    delta = {"weights": np.random.default_rng(1).standard_normal(WIDTH).astype(np.float32)}
    shapes = {"weights": (WIDTH,)}
    found: list[Figure] = []
    for update_format in ("fp32", "fp16", "int8"):
        body, _ = encode_delta(delta, update_format)
        encode = _best(lambda chosen=update_format: encode_delta(delta, chosen), 5)
        decode = _best(lambda sent=body: decode_delta(sent, shapes), 5)
        note = f"10 M parameters, {len(body) / 1e6:.0f} MB, processor time"
        found.append(Figure(f"update in {update_format}, encoded", encode * 1e3, "ms", Aim(60, "at most"), note))
        found.append(
            Figure(f"update in {update_format}, decoded and checked", decode * 1e3, "ms", Aim(30, "at most"), note)
        )
    return found


def _average() -> list[Figure]:
    base = {"weights": np.zeros(WIDTH, dtype=np.float32)}
    source = np.random.default_rng(2)
    deltas = [source.standard_normal(WIDTH, dtype=np.float32) for _ in range(NODES)]
    updates = [Update(part, 1.0, {"weights": delta}) for part, delta in enumerate(deltas)]
    began = time.perf_counter()
    make_strategy(StrategyConfig()).aggregate(base, lambda: iter(updates), NODES)
    took = time.perf_counter() - began
    note = f"{NODES} updates of 10 M parameters that are in memory: checks and sums, no transport"
    return [Figure("FedAvg of a large round", took, "s", note=note)]


def _best(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the fastest of some repetitions, in seconds of a processor: what else runs here only ever adds.

    One thread does all of it, so on a quiet machine these are the seconds of a clock.
    """
    took: list[float] = []
    work()
    for _ in range(repeats):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return min(took)
