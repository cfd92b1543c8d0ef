"""The recorded forest against a second, slow implementation of the same text: whole numbers of Python, one row at a time."""

from __future__ import annotations

import hashlib
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_fl.histogram import PartRows, run_local
from parity_fl.spec import ForestConfig

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "fl" / "histogram_forest.json").read_text())
MASK = (1 << 64) - 1


def key(purpose: str, state: int, tree: int) -> tuple[int, int]:
    material = state.to_bytes(8, "big") + tree.to_bytes(4, "big")
    digest = hashlib.sha256(b"parity-fl/v1\x00" + purpose.encode() + b"\x00" + material).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def mix(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)


def word(keys: tuple[int, int], number: int) -> int:
    return mix(mix((number * 0x9E3779B97F4A7C15 + keys[0]) & MASK) ^ keys[1])


def draws(config: dict[str, Any], tree: int, row: int) -> int:
    rate = Fraction(str(config["subsample"]))
    drawn = word(key("histogram-draw", config["random_state"], tree), row)
    if not config["bootstrap_samples"]:
        return int(Fraction(drawn, 1 << 64) < rate)
    chance = below = math.exp(-1.0 * float(rate))
    for count in range(15):
        if drawn < below * 2**64:  # no recorded draw is within a float's error of a limit
            return count
        chance *= float(rate) / (count + 1)
        below += chance
    return 15


def thresholds(column: list[float], bins: int) -> list[float]:
    ordered, rows = sorted(column), len(column)
    ranks = {-(-i * rows // (4 * bins)) for i in range(1, 4 * bins)}
    candidates = sorted({ordered[rank - 1] for rank in ranks} - {ordered[-1]})
    edges: list[float] = []
    if len(candidates) < bins:
        edges = candidates
    else:
        last = 0
        for value in candidates:
            up_to, left = sum(other <= value for other in ordered), bins - 1 - len(edges)
            if left and (up_to - last) * (left + 1) >= rows - last:
                edges.append(value)
                last = up_to
    return [edge + (min(value for value in ordered if value > edge) - edge) / 2 for edge in edges]


def purity(rows: list[tuple[int, float]], config: dict[str, Any], classes: int) -> float:
    """Return draws times negative impurity of (draws, truth) pairs, up to a constant term."""
    total = sum(count for count, _ in rows)
    if config["task"] == "regression":
        return sum(count * value for count, value in rows) ** 2 / max(1, total)
    shares = [sum(count for count, value in rows if value == number) for number in range(classes)]
    if config["criterion"] == "gini":
        return sum(share * share for share in shares) / max(1, total)
    return sum(share * math.log2(share) for share in shares if share) - total * math.log2(max(1, total))


def grow(config: dict[str, Any], features: list[list[float]], truth: list[float], classes: int) -> dict[str, list[Any]]:
    """Return every tree's nodes in the order in which waves of the queue settle them."""
    width = len(features[0])
    cuts = [thresholds([row[column] for row in features], config["max_bins"]) for column in range(width)]
    bins = [[sum(cut < row[column] for cut in cuts[column]) for column in range(width)] for row in features]
    varying = [column for column in range(width) if cuts[column]]
    tries = min(len(varying), config["max_features"] or math.isqrt(width))
    out: dict[str, list[Any]] = {"feature": [], "threshold": [], "left": [], "right": [], "n": [], "value": []}
    for tree in range(config["num_trees"]):
        weights = [draws(config, tree, row) for row in range(len(features))]
        nodes: list[dict[str, Any]] = [{"rows": [row for row, weight in enumerate(weights) if weight], "depth": 0}]
        queue = [(0, 0)]
        keys = key("histogram-features", config["random_state"], tree)
        while queue:
            number, attempt = queue.pop(0)
            node = nodes[number]
            pairs = [(weights[row], truth[row]) for row in node["rows"]]
            size = sum(weight for weight, _ in pairs)
            if node["depth"] >= config["max_depth"] or len({value for _, value in pairs}) < 2:
                continue
            if size < max(config["min_samples_split"], 2 * config["min_samples_leaf"]):
                continue
            order = sorted(varying, key=lambda column: (word(keys, number * width + column), column))
            best: tuple[float, int, int] | None = None
            for column in order[attempt * tries : (attempt + 1) * tries]:
                for cut in range(len(cuts[column])):
                    sides = [[], []]  # type: ignore[var-annotated]
                    for row in node["rows"]:
                        sides[bins[row][column] > cut].append((weights[row], truth[row]))
                    if min(sum(weight for weight, _ in side) for side in sides) < config["min_samples_leaf"]:
                        continue
                    score = sum(purity(side, config, classes) for side in sides)
                    if best is None or score > best[0] + 1e-9:
                        best = (score, column, cut)
            if best is None:
                if (attempt + 1) * tries < len(varying):
                    queue.append((number, attempt + 1))
                continue
            _, column, cut = best
            last = cut
            while last + 1 < len(cuts[column]) and not any(bins[row][column] == last + 1 for row in node["rows"]):
                last += 1
            cut = (cut + last) // 2
            node["split"] = (column, cuts[column][cut])
            for side in ("left", "right"):
                rows = [row for row in node["rows"] if (bins[row][column] > cut) == (side == "right")]
                node[side] = len(nodes)
                nodes.append({"rows": rows, "depth": node["depth"] + 1})
                queue.append((node[side], 0))
        for node in nodes:
            column, threshold = node.get("split", (-1, 0.0))
            size = sum(weights[row] for row in node["rows"])
            if classes:
                value = [
                    sum(weights[row] for row in node["rows"] if truth[row] == number) / size
                    for number in range(classes)
                ]
            else:
                value = [sum(weights[row] * truth[row] for row in node["rows"]) / size]
            for name, entry in zip(
                out, (column, threshold, node.get("left", -1), node.get("right", -1), size, value), strict=True
            ):
                out[name].append(entry)
    return out


@pytest.fixture(params=VECTORS, ids=[case["name"] for case in VECTORS])
def case(request) -> dict[str, Any]:
    return request.param


def test_recorded_forest_is_the_slow_ones(case):
    slow = grow(case["config"], case["features"], case["truth"], len(case["class_names"]))

    recorded = case["forest"]
    for name in ("feature", "left", "right", "n", "threshold"):
        assert recorded[name] == slow[name], name
    np.testing.assert_allclose(
        recorded["value"], slow["value"], rtol=1e-5, atol=2e-3 if not case["class_names"] else 1e-6
    )


@pytest.mark.parametrize("parts", [1, 3])
def test_recorded_forest_comes_out_of_any_number_of_parts(case, parts):
    features, truth = np.array(case["features"], dtype=np.float32), np.array(case["truth"])
    cut = [np.arange(part, len(truth), parts) for part in range(parts)]
    names = tuple(case["class_names"])

    run = run_local(
        ForestConfig(**case["config"]),
        [PartRows(part, features[ids], truth[ids], names, ids.astype(np.uint32)) for part, ids in enumerate(cut)],
    )

    for name, recorded in case["forest"].items():
        assert getattr(run.forest, name).tolist() == recorded, name


def test_recorded_draws_are_the_text(case):
    for tree, recorded in enumerate(case["draws"]):
        assert [draws(case["config"], tree, row) for row in range(len(case["truth"]))] == recorded
