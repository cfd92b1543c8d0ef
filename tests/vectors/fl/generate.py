"""Write the golden vectors of this folder again: ``python tests/vectors/fl/generate.py``.

The files are for other implementations; ``tests/unit/fl/test_partition.py`` checks them against a second, slow
implementation of the same text, so a wrong file does not become right by being written again.
"""

import json
from pathlib import Path

import numpy as np

from parity_fl.bootstrap import draw_counts
from parity_fl.fields import Section
from parity_fl.partition import assign, plan_partition
from parity_fl.partition_config import partition_config
from parity_fl.prng import Sha256Stream, below, derive_key, shuffled
from parity_fl.spec import ForestConfig, PartitionConfig

HERE = Path(__file__).parent
SEED = "5eed" * 16
CLASSES = ["a", "b", "c"]


def labels_for(kind: str, rows: int) -> list[str] | list[float]:
    if kind == "class":
        return [CLASSES[(i * i + i // 7) % 3] for i in range(rows)]
    return [float((i * 37) % rows) / 4 for i in range(rows)]


def partition_cases() -> list[dict[str, object]]:
    cases: list[dict[str, object]] = []
    for kind in ("class", "quantile"):
        for strategy in ("random", "stratified", "sequential", "non_iid", "label_skew"):
            for overlap in (0.0, 0.25):
                labels = labels_for(kind, 60)
                config = PartitionConfig(
                    strategy=strategy,
                    min_samples=5,
                    total_parts=4,
                    overlap_ratio=overlap,
                    holdout_fraction=0.2,
                    alpha=0.5 if strategy == "non_iid" else None,
                )
                raw = np.array(labels)
                plan = plan_partition(config, raw, seed=SEED, n_features=2, classification=kind == "class")
                cut = assign(plan, raw)
                parts = [rows.tolist() for rows in cut.parts]
                cases.append(
                    {"labels": labels, "plan": plan.to_dict(), "parts": parts, "holdout": cut.holdout.tolist()}
                )
    return cases


def skewed_cases() -> list[dict[str, object]]:
    """Larger cuts by every strategy: only their matrix and hash are written."""
    settings: list[dict[str, object]] = [
        {"strategy": "random", "total_parts": 7, "min_samples": 5},
        {"strategy": "stratified", "total_parts": 7, "min_samples": 5},
        {"strategy": "sequential", "total_parts": 7, "min_samples": 5},
        {"strategy": "non_iid", "total_parts": 5, "min_samples": 5, "alpha": 0.5},
        {"strategy": "non_iid", "total_parts": 10, "min_samples": 20, "alpha": 0.1},
        {"strategy": "non_iid", "total_parts": 6, "min_samples": 1, "alpha": 0.3, "balanced": True},
        {"strategy": "non_iid", "total_parts": 4, "min_samples": 5, "alpha": 0.5, "overlap_ratio": 0.25},
        {"strategy": "non_iid", "total_parts": 3, "min_samples": 1, "alpha": 40.0, "holdout_fraction": 0.0},
        {"strategy": "label_skew", "total_parts": 5, "min_samples": 5, "classes_per_part": 2},
        {"strategy": "label_skew", "total_parts": 2, "min_samples": 5},
        {"strategy": "label_skew", "total_parts": 10, "min_samples": 23, "classes_per_part": 1},
    ]
    cases: list[dict[str, object]] = []
    for kind in ("class", "quantile"):
        for members in settings:
            config, _ = partition_config(Section(members, "partition_config"))
            plan = plan_partition(
                config, np.array(labels_for(kind, 300)), seed=SEED, n_features=2, classification=kind == "class"
            )
            kept = ("holdout_counts", "counts", "overlap_counts", "redraws", "moved", "assignment_hash")
            document = plan.to_dict()
            cases.append({"strata": kind, "config": members} | {name: document[name] for name in kept})
    return cases


def stream_cases() -> dict[str, object]:
    key = derive_key("rows", bytes.fromhex(SEED))
    bounds = [1, 2, 3, 10, 1000, 2**31 + 1, 2**32 - 1, 2**32]
    config = ForestConfig(random_state=42, subsample=0.5)
    return {
        "purpose": "rows",
        "material": SEED,
        "key": key.hex(),
        "words": Sha256Stream(key).peek(10).tolist(),
        "bounds": bounds,
        "below": below(Sha256Stream(key), np.array(bounds)).tolist(),
        "shuffled_20": shuffled(np.arange(20, dtype=np.uint32), Sha256Stream(key)).tolist(),
        "bootstrap": {
            "random_state": 42,
            "subsample": 0.5,
            "part": 1,
            "tree": 2,
            "rows": 24,
            "counts": draw_counts(config, part=1, tree=2, rows=24).tolist(),
        },
    }


if __name__ == "__main__":
    (HERE / "partition.json").write_text("[\n" + ",\n".join(map(json.dumps, partition_cases())) + "\n]\n")
    (HERE / "partitions.json").write_text("[\n" + ",\n".join(map(json.dumps, skewed_cases())) + "\n]\n")
    (HERE / "stream.json").write_text(json.dumps(stream_cases()) + "\n")
