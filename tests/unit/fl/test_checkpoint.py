"""Checkpoints: what is in them, what is refused, and a session that goes on from one to the same bits."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_fl.aggregate import Update, make_strategy, read_strategy
from parity_fl.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    decode_checkpoint,
    encode_checkpoint,
)
from parity_fl.models.base import Weights
from parity_fl.rounds_config import is_due
from parity_fl.strategy import STRATEGIES, StrategyConfig
from parity_protocol.errors import BadDocument, DigestMismatch, NotFound, TooFewUpdates

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SHAPES = {"b": (3,), "w": (6, 3)}
PARTS = 7
ROUNDS = 6


def first() -> Weights:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def train(weights: Weights, part: int, number: int) -> Update:
    """One part's step towards its own target; noisy, and the same whenever it is repeated."""
    rng = np.random.default_rng([part, number])
    target = np.random.default_rng(part)
    delta = {
        name: (0.3 * (target.normal(size=w.shape) - w) + 0.01 * rng.normal(size=w.shape)).astype(np.float32)
        for name, w in weights.items()
    }
    return Update(part, 10.0 + part, delta)


class Market:
    """The smallest market: rounds, checkpoints, and nothing that outlives it but its folder."""

    def __init__(self, folder: Path, config: StrategyConfig, *, quorum: int = 5, interval: int = 1) -> None:
        self.folder, self.config, self.quorum, self.interval = CheckpointFolder(folder), config, quorum, interval
        self.strategy = make_strategy(config)
        self.weights, self.round = first(), 0
        found = self.folder.latest()
        if found is not None:
            self.weights, self.round = found.weights, found.round
            self.strategy.restore(found.state)

    def run_round(self, parts: Iterable[int] = range(PARTS)) -> None:
        number = self.round + 1
        updates = [train(self.weights, part, number) for part in parts]
        if len(updates) < self.quorum:
            raise TooFewUpdates(f"the quorum is {self.quorum}, {len(updates)} updates came")
        done = self.strategy.aggregate(self.weights, lambda: iter(updates), len(updates))
        self.weights, self.round = done.weights, number
        if is_due(number, interval=self.interval, total_rounds=ROUNDS):
            self.folder.save(self.checkpoint(), now=NOW)

    def checkpoint(self) -> Checkpoint:
        return Checkpoint("session-1", self.round, ROUNDS, self.config, self.weights, self.strategy.state(), {"a": 0.5})

    def finish(self) -> Weights:
        while self.round < ROUNDS:
            self.run_round()
        return self.weights


def sample() -> Checkpoint:
    config = read_strategy("FedAdam")
    strategy = make_strategy(config)
    updates = [train(first(), part, 1) for part in range(PARTS)]
    done = strategy.aggregate(first(), lambda: iter(updates), PARTS)
    return Checkpoint("session-1", 4, 20, config, done.weights, strategy.state(), {"accuracy": 0.75})


def same(one: Weights, two: Weights) -> bool:
    return one.keys() == two.keys() and all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_a_checkpoint_comes_back_bit_for_bit() -> None:
    before = sample()

    after = decode_checkpoint(encode_checkpoint(before))

    assert same(before.weights, after.weights)
    assert before.state.keys() == after.state.keys()
    assert all(before.state[key].tobytes() == after.state[key].tobytes() for key in before.state)
    assert (after.session_id, after.round, after.total_rounds) == ("session-1", 4, 20)
    assert after.strategy == before.strategy
    assert after.metrics == {"accuracy": 0.75}


def test_equal_checkpoints_are_equal_bytes() -> None:
    assert encode_checkpoint(sample()) == encode_checkpoint(sample())


def test_numpy_reads_it_without_pickle() -> None:
    with np.load(io.BytesIO(encode_checkpoint(sample())), allow_pickle=False) as found:
        np.testing.assert_array_equal(found["weights.w"], sample().weights["w"])


@pytest.mark.parametrize(
    ("number", "due"), [(1, False), (4, False), (5, True), (10, True), (11, False), (13, True), (12, False)]
)
def test_it_is_due_every_so_many_rounds_and_at_the_end(number: int, due: bool) -> None:
    assert is_due(number, interval=5, total_rounds=13) is due


def test_a_folder_holds_the_files_that_the_guide_names(tmp_path: Path) -> None:
    market = Market(tmp_path, read_strategy("FedAvg"), interval=4)

    market.finish()

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_latest.json",
        "checkpoint_latest.npz",
        "checkpoint_round_4.npz",
        "checkpoint_round_6.npz",
    ]
    side = json.loads((tmp_path / "checkpoint_latest.json").read_text())
    assert (side["round"], side["num_arrays"], side["timestamp"]) == (6, 2, "2026-11-23T12:00:00Z")
    assert (tmp_path / "checkpoint_latest.npz").read_bytes() == (tmp_path / "checkpoint_round_6.npz").read_bytes()


def test_old_checkpoints_go_when_only_some_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    market = Market(tmp_path / "unused", read_strategy("FedAvg"), interval=100)

    for _ in range(4):
        market.run_round()
        folder.save(market.checkpoint(), now=NOW)

    assert folder.rounds() == [3, 4]
    assert folder.load(3).round == 3


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_a_market_that_is_killed_in_a_round_ends_with_the_same_bits(strategy: str, tmp_path: Path) -> None:
    # Scenario 2 of the guide: the market dies between rounds 3 and 4; the optimizer's moments come back too.
    config = read_strategy({"strategy": strategy, "num_malicious": 1, "clip": "median"})
    expected = Market(tmp_path / "through", config).finish()
    killed = Market(tmp_path / "killed", config)
    for _ in range(3):
        killed.run_round()
    del killed

    resumed = Market(tmp_path / "killed", config)

    assert resumed.round == 3
    assert same(resumed.finish(), expected)


def test_forgetting_the_moments_would_show(tmp_path: Path) -> None:
    config = read_strategy("FedAdam")
    expected = Market(tmp_path / "through", config).finish()
    market = Market(tmp_path / "killed", config)
    for _ in range(3):
        market.run_round()

    market.strategy = make_strategy(config)

    assert not same(market.finish(), expected)


def test_a_node_that_crashes_in_a_round_is_not_waited_for_and_comes_back(tmp_path: Path) -> None:
    # Scenario 1: the round closes with the others, and the node is in the next one. No checkpoint is read.
    market = Market(tmp_path, read_strategy("FedAvg"))
    market.run_round()
    market.run_round(parts=[part for part in range(PARTS) if part != 2])
    market.run_round()

    by_hand = Market(tmp_path / "again", read_strategy("FedAvg"))
    for parts in (range(7), (0, 1, 3, 4, 5, 6), range(7)):
        by_hand.run_round(parts)

    assert market.round == 3
    assert same(market.weights, by_hand.weights)


def test_a_new_machine_goes_on_where_the_volume_was_kept_and_begins_again_where_not(tmp_path: Path) -> None:
    # Scenario 3: the machine is gone; its volume is mounted elsewhere.
    config = read_strategy("FedAvgM")
    old = Market(tmp_path / "old", config, interval=2)
    for _ in range(3):
        old.run_round()
    shutil.copytree(tmp_path / "old", tmp_path / "volume", symlinks=True)
    shutil.rmtree(tmp_path / "old")

    kept = Market(tmp_path / "volume", config, interval=2)
    lost = Market(tmp_path / "empty", config, interval=2)

    assert kept.round == 2  # the last that was due; round 3 is done again
    assert lost.round == 0
    assert same(kept.finish(), lost.finish())


def test_nodes_that_a_partition_cut_off_make_the_round_wait_and_change_nothing(tmp_path: Path) -> None:
    # Scenario 4: too few updates come; the round is tried again when the network is back.
    config = read_strategy("FedYogi")
    expected = Market(tmp_path / "through", config).finish()
    market = Market(tmp_path / "cut", config)
    market.run_round()

    with pytest.raises(TooFewUpdates):
        market.run_round(parts=[0, 1])

    assert market.round == 1
    assert same(market.finish(), expected)


@pytest.mark.parametrize("operation", ["fsync", "replace", "symlink_to"])
@pytest.mark.parametrize("call", range(5))
def test_wherever_a_save_is_cut_off_the_latest_is_whole(
    operation: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = Market(tmp_path, read_strategy("FedAdam"))
    market.run_round()
    before = market.weights
    calls = iter(range(100))

    def cut(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if next(calls) == call:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        if operation == "fsync":
            patch.setattr(os, "fsync", cut(os.fsync))
        else:
            patch.setattr(Path, operation, cut(getattr(Path, operation)))
        try:
            market.run_round()
        except KeyboardInterrupt:
            pass

    found = Market(tmp_path, read_strategy("FedAdam"))

    assert found.round in (1, 2)
    assert same(found.weights, before if found.round == 1 else market.weights)
    found.run_round()
    assert not list(tmp_path.glob(".*"))


def test_without_links_the_latest_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("links are not supported here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    Market(tmp_path, read_strategy("FedAvg"), interval=6).finish()

    assert not (tmp_path / "checkpoint_latest.npz").is_symlink()
    assert decode_checkpoint((tmp_path / "checkpoint_latest.npz").read_bytes()).round == 6


def test_a_changed_file_is_refused_and_an_older_one_is_named(tmp_path: Path) -> None:
    market = Market(tmp_path, read_strategy("FedAvg"))
    market.run_round()
    market.run_round()
    path = tmp_path / "checkpoint_round_2.npz"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)

    with pytest.raises(DigestMismatch) as caught:
        CheckpointFolder(tmp_path).latest()

    assert "round 1" in caught.value.hint()
    assert CheckpointFolder(tmp_path).load(1).round == 1


def test_a_checkpoint_that_is_gone_is_said(tmp_path: Path) -> None:
    market = Market(tmp_path, read_strategy("FedAvg"))
    market.run_round()
    (tmp_path / "checkpoint_round_1.npz").unlink()

    with pytest.raises(NotFound, match=r"checkpoint_round_1\.npz"):
        CheckpointFolder(tmp_path).latest()


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "parity.fl-checkpoint/2", "round": "1"}'])
def test_a_side_file_of_somebody_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint_latest.json").write_text(text)

    with pytest.raises(BadDocument, match="not ours"):
        CheckpointFolder(tmp_path).latest()


def archive_of(entries: dict[str, Any], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, value in entries.items():
            if isinstance(value, bytes):
                archive.writestr(name, value)
            else:
                body = io.BytesIO()
                np.save(body, value, allow_pickle=value.dtype == object)
                archive.writestr(f"{name}.npy", body.getvalue())
    return file.getvalue()


def meta(**changes: Any) -> Any:
    members: dict[str, Any] = {
        "format": "parity.fl-checkpoint/2",
        "session_id": "s",
        "round": 1,
        "total_rounds": 2,
        "strategy": {"strategy": "fedavg"},
        "metrics": {},
        "settings": {},
        "seed": "",
        "assignment_hash": "",
        "owner": "",
    }
    return np.frombuffer(json.dumps({**members, **changes}).encode(), np.uint8)


def header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def raw_header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def one_inside_another() -> bytes:
    """Return an archive whose array ``a`` is right, and has the right array ``b`` among its values."""
    inner = archive_of({"weights.b": np.zeros(2000, np.float32)})
    (found,) = zipfile.ZipFile(io.BytesIO(inner)).infolist()
    record = inner[: 30 + len(found.filename) + found.file_size]
    record += bytes(-len(record) % 4)
    start = header(f"({len(record) // 4},)")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        body = io.BytesIO()
        np.save(body, meta())
        archive.writestr("meta.npy", body.getvalue())
        archive.writestr("weights.a.npy", start + record)
        found.header_offset = archive.infolist()[-1].header_offset + 30 + len("weights.a.npy") + len(start)
        archive.filelist.append(found)
    return file.getvalue()


HOSTILE = {
    "one array inside another": one_inside_another(),
    "empty": b"",
    "no archive": b"PK\x03\x04nothing",
    "no meta": archive_of({"weights.w": np.zeros(3, np.float32)}),
    "pickled objects": archive_of({"meta": meta(), "weights.w": np.array([{}], dtype=object)}),
    "a bomb": archive_of({"meta": meta(), "weights.w": np.zeros(10**6, np.float32)}, compression=zipfile.ZIP_DEFLATED),
    "a shape beyond the body": archive_of({"meta": meta(), "weights.w.npy": header("(1000000000000,)") + bytes(4)}),
    "a negative shape": archive_of({"meta": meta(), "weights.w.npy": header("(-1, -1)") + bytes(4)}),
    "no array": archive_of({"meta": meta(), "weights.w.npy": b"text"}),
    "another type": archive_of({"meta": meta(), "weights.w": np.zeros(3)}),
    "nan": archive_of({"meta": meta(), "weights.w": np.full(3, np.nan, np.float32)}),
    "unknown entry": archive_of({"meta": meta(), "../../etc/passwd": b"x"}),
    "meta that is no object": archive_of({"meta": np.frombuffer(b"[]", np.uint8)}),
    "meta that is no JSON": archive_of({"meta": np.frombuffer(b"{", np.uint8)}),
    "another format": archive_of({"meta": meta(format="x")}),
    "a round that is a text": archive_of({"meta": meta(round="1")}),
    "a negative round": archive_of({"meta": meta(round=-1)}),
    "a strategy that is not known": archive_of({"meta": meta(strategy={"strategy": "best"})}),
    "metrics of text": archive_of({"meta": meta(metrics={"a": "b"})}),
    "a header without an end": archive_of({"meta": meta(), "weights.w.npy": raw_header(b"(" * 300)}),
    "a header with other indents": archive_of({"meta": meta(), "weights.w.npy": raw_header(b"\n  x\n y")}),
    "a header with a list as key": archive_of({"meta": meta(), "weights.w.npy": raw_header(b"{[]: 1}")}),
    "a session that is a number": archive_of({"meta": meta(session_id=1)}),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_not_a_checkpoint_is_refused(data: bytes) -> None:
    with pytest.raises(BadDocument):
        decode_checkpoint(data)


def test_a_small_foreign_archive_that_is_right_is_read() -> None:
    data = archive_of({"meta": meta(), "weights.w": np.ones(3, np.float32)})

    assert decode_checkpoint(data).weights["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("position", range(0, 3200, 97))
def test_a_flipped_bit_is_found_by_the_archives_own_sums_or_changes_nothing(position: int) -> None:
    before = sample()
    data = bytearray(encode_checkpoint(before))
    data[position % len(data)] ^= 4

    try:
        found = decode_checkpoint(bytes(data))
    except BadDocument:
        return

    assert same(found.weights, before.weights)
