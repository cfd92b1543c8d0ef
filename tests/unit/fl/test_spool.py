"""Updates on a disk, as a rule reads them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from parity_fl.aggregate import Update, make_strategy, read_strategy
from parity_fl.codec import decode_delta, encode_delta
from parity_fl.models.base import Weights
from parity_fl.rounds_config import UpdateFormat
from parity_fl.spool import Spooled, map_file, spooled_updates
from parity_protocol.errors import BadDocument, TooLarge

SHAPES = {"b": (5,), "w": (40, 60)}


def delta(part: int) -> Weights:
    rng = np.random.default_rng(part)
    return {name: (0.01 * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("update_format", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("strategy", ["FedAvg", "Krum", "FedTrimmedAvg"])
def test_a_rule_makes_of_files_what_it_makes_of_the_updates_in_them(
    strategy: str, update_format: UpdateFormat, tmp_path: Path
) -> None:
    base = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    bodies = {part: encode_delta(delta(part), update_format)[0] for part in (0, 2, 3, 7, 9)}
    files: dict[int, Spooled] = {}
    for part, body in bodies.items():
        (tmp_path / f"{part}").write_bytes(body)
        files[part] = Spooled(tmp_path / f"{part}", 10.0 + part)
    held = [Update(part, 10.0 + part, decode_delta(body, SHAPES)) for part, body in bodies.items()]
    config = read_strategy({"strategy": strategy, "num_malicious": 1})

    from_files = make_strategy(config).aggregate(base, partial(spooled_updates, files, SHAPES), 5)
    from_memory = make_strategy(config).aggregate(base, lambda: iter(held), 5)

    assert from_files.accepted == (0, 2, 3, 7, 9)
    for name in SHAPES:
        np.testing.assert_array_equal(from_files.weights[name], from_memory.weights[name])


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "other").write_bytes(encode_delta({"b": np.ones(5, np.float32)}, "fp32")[0])

    with pytest.raises(BadDocument, match="empty cannot be read"):
        map_file(tmp_path / "empty")
    with pytest.raises(BadDocument, match="missing cannot be read"):
        map_file(tmp_path / "missing")
    with pytest.raises(BadDocument, match="expected the tensors b, w"):
        list(spooled_updates({0: Spooled(tmp_path / "other", 1.0)}, SHAPES))
    with pytest.raises(TooLarge):
        map_file(tmp_path / "other", max_bytes=10)
