"""Write ``histogram_forest.json`` again: ``python tests/vectors/fl/generate_forest.py``.

``tests/unit/fl/test_histogram_vectors.py`` checks it against a second, slow implementation of the same text.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from parity_fl.histogram import PartRows, run_local
from parity_fl.histogram_draws import Drawing
from parity_fl.spec import ForestConfig

FIELDS = ("tree_starts", "feature", "threshold", "left", "right", "value", "n")
ROWS = 48


def case(name: str, classes: int, config: ForestConfig) -> dict[str, object]:
    rows = np.arange(ROWS)
    columns = [
        rows * 37 % 48 / 4,
        rows % 3 * 1.0,
        np.where(rows < 6, -1.5, 0.0),
        rows * rows % 29 - 14.0,
        0 * rows + 2.0,
    ]
    features = np.stack(columns, axis=1).astype(np.float32)
    mixed = (features[:, 0] > 5).astype(int) + (features[:, 3] > 2) * (rows % 2)
    truth = (mixed % classes if classes else mixed * 10.0 + rows % 5).astype(float)
    names = tuple("abc"[:classes])
    run = run_local(config, [PartRows(0, features, truth, names, rows.astype(np.uint32))])
    drawing = Drawing(random_state=config.random_state, subsample=config.subsample, bootstrap=config.bootstrap_samples)
    return {
        "name": name,
        "config": asdict(config),
        "features": features.tolist(),
        "truth": truth.tolist(),
        "class_names": list(names),
        "draws": [drawing.counts(tree, rows.astype(np.uint32)).tolist() for tree in range(config.num_trees)],
        "forest": {field: getattr(run.forest, field).tolist() for field in FIELDS},
    }


if __name__ == "__main__":
    small = {"mode": "histogram", "num_trees": 3, "max_depth": 4, "oob_score": False}
    cases = [
        case("gini", 3, ForestConfig(**small, max_bins=8)),
        case("entropy", 3, ForestConfig(**small, criterion="entropy", min_samples_leaf=2, max_features=1)),
        case(
            "without_bootstrap", 2, ForestConfig(**small, bootstrap_samples=False, subsample=0.7, min_samples_split=6)
        ),
        case("regression", 0, ForestConfig(**small, task="regression", criterion="squared_error", max_bins=12)),
    ]
    path = Path(__file__).parent / "histogram_forest.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")
