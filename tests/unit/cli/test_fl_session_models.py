"""`parity fl model` of a session at the market."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity_client.testing import FakeMarket
from parity_protocol.signing.keys import EvmKey

from .fl_sessions import begun, close_rounds

if TYPE_CHECKING:
    from .conftest import Done, Parity
else:
    Done = Parity = Any


def test_the_newest_model_is_written_and_fetched_again_only_when_there_is_another(
    parity: Parity, joined: FakeMarket, spec: Path, tmp_path: Path
) -> None:
    session = begun(parity, joined, spec)
    target = tmp_path / "m.safetensors"

    first = parity("fl", "model", session.id, "-o", target.name)
    same = parity("fl", "model", session.id, "-o", target.name, "--json")
    close_rounds(joined, session, 1)
    refused = parity("fl", "model", session.id, "-o", target.name)
    forced = parity("fl", "model", session.id, "-o", target.name, "--force")

    assert first.out.strip() == "m.safetensors  20 B, the global model after round 0"
    assert (same.json["is_new"], same.json["round"]) == (False, 0)
    assert refused.code == 20
    assert "m.safetensors exists already" in refused.err
    assert forced.code == 0
    assert target.read_bytes() == b"the model of round 2"
    assert [status for _, status in joined.training.sent] == [200, 304, 200, 200]


def test_the_finished_model_is_the_one_that_its_cid_names(
    parity: Parity, joined: FakeMarket, spec: Path, tmp_path: Path
) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 3)
    (tmp_path / "m.bin").write_bytes(b"older")
    (tmp_path / ".m.bin.new").write_bytes(b"left by somebody who was killed")

    refused = parity("fl", "model", session.id, "-o", "m.bin")
    done = parity("fl", "model", session.id, "-o", "m.bin", "--force", "--json")

    assert refused.code == 20
    assert done.json["cid"] == session.result_cid
    assert (tmp_path / "m.bin").read_bytes() == b"the finished model"


def test_a_file_that_holds_the_finished_model_is_left_and_another_is_not_written_over(
    parity: Parity, joined: FakeMarket, spec: Path, tmp_path: Path
) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 3)
    (tmp_path / "m.bin").write_bytes(b"the finished model")

    again = parity("fl", "model", session.id, "-o", "m.bin")
    (tmp_path / "m.bin").write_bytes(b"another model")
    over = parity("fl", "model", session.id, "-o", "m.bin")

    assert again.code == 0, again.err
    assert again.out.endswith("already\n")
    assert over.code == 20
    assert (tmp_path / "m.bin").read_bytes() == b"another model"


def test_a_large_model_whose_transfer_breaks_is_taken_up_again(
    parity: Parity, joined: FakeMarket, spec: Path, tmp_path: Path, key: EvmKey
) -> None:
    session = begun(parity, joined, spec)
    session.model = bytes(range(256)) * (40 << 12)  # 40 MiB: more than an answer in memory may have
    joined.training.breaks_after = 30 << 20

    done = parity("fl", "model", session.id, "-o", "m.bin")

    assert done.code == 0
    assert (tmp_path / "m.bin").read_bytes() == session.model
    assert joined.training.sent == [("", 200), (f"bytes={30 << 20}-", 206)]
    assert [path.name for path in tmp_path.glob(".m.bin*")] == []
