"""Nodes that train and mean harm: nothing but a part's own update, to the open round, is taken or lies on disk."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from parity_fl.rounds import RoundTrainer
from parity_market.loops.rounds import Rounds
from parity_market.operations import groups
from parity_market.operations.groups import Group
from parity_market.round_engine import LAST_REPORTS
from parity_market.round_intake import EXTRA_BYTES
from parity_market.testing.rig import inline
from parity_market.testing.served import TOKEN, Served, Signer, serve_in_process
from parity_protocol.api import paths
from parity_protocol.api.rounds import FlRoundReply, FlSessionReply, RoundStep
from parity_protocol.testing.keys import deterministic_evm_key

INSTANCE = "ab" * 32
DATA = b"a,b,target\n" + b"".join(b"%d,%d,%d\n" % (i, i * 7 % 13, 3 * i - i * 7 % 13) for i in range(60))
HUGE = struct.pack("<Q", (1 << 63) - 1) + b"{}"  # a header that is as long as it says would not fit anywhere
NOT_FINITE = b'{"weights":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@dataclass
class Training:
    """A session with two parts, each held by a node of its own, and its submitter."""

    served: Served
    submitter: Signer
    nodes: tuple[Signer, Signer]
    id: str
    leases: tuple[tuple[str, int], tuple[str, int]]  # of each part: id, fence
    step: RoundStep

    async def group(self) -> Group:
        return await self.served.state.store.read(partial(groups.load, group_id=self.id))

    async def honest(self, part: int) -> bytes:
        session = self.served.state.rounds.known(await self.group()).session
        model = await self.served.call("GET", paths.fl_session_path(self.id, "model"), by=self.nodes[part])
        return RoundTrainer(session.spec, session.plan, DATA, part).train(model.content, number=1).update

    def where(self, part: int = 0, *, at: tuple[object, object, object] | None = None, **query: object) -> str:
        lease_id, fence = self.leases[part]
        asked = {"lease_id": lease_id, "fence": fence, "base": self.step.base, **query}
        number, phase, named = at or (1, 0, part)
        return f"{paths.fl_part_path(self.id, str(number), str(phase), str(named))}?{urlencode(asked)}"

    async def put(self, where: str, body: bytes = b"x", *, by: Signer | None) -> httpx.Response:
        return await self.served.call("PUT", where, raw=body, by=by)

    async def round(self) -> FlRoundReply:
        reply = await self.served.call("GET", paths.fl_session_path(self.id), by=self.submitter)
        return FlSessionReply.model_validate_json(reply.content).rounds[0]

    def files(self) -> list[str]:
        folder = self.served.state.rounds.folder(self.id) / "updates"
        return sorted(path.name for path in folder.rglob("*") if path.is_file())


async def _claimed(served: Served, node: Signer) -> tuple[str, int]:
    """Have a node take one part; returns its lease's id and fence."""
    poll = {"instance": INSTANCE, "slots": 1, "wait_s": 0}
    (manifest,) = (await served.call("POST", paths.LEASE_POLL, poll, by=node)).json()["manifests"]
    claim = {"manifest": manifest, "claim_id": str(uuid.uuid4())}
    reply = await served.call("POST", paths.LEASE_CLAIMS, {"instance": INSTANCE, "claims": [claim]}, by=node)
    lease = reply.json()["claims"][0]
    return lease["lease_id"], lease["fence"]


@pytest.fixture
async def training(tmp_path: Path) -> AsyncIterator[Training]:
    async with serve_in_process(tmp_path, offload=inline) as served:
        account = deterministic_evm_key("submitter")
        await served.fund(account, 50 * TOKEN)
        me = await served.sign_in(account)
        stored = await served.call("POST", paths.STORAGE_UPLOAD, raw=DATA, by=me)
        spec = {
            "type": "federated_learning",
            "model_type": "linear_regression",
            "dataset_cid": stored.json()["cid"],
            "data_format": "csv",
            "model_config": {"input_size": 2},
            "train_config": {"epochs": 1, "batch_size": 8, "learning_rate": 0.001},
            "partition_config": {"strategy": "random", "total_parts": 2, "min_samples": 2},
            "total_rounds": 2,
            "rounds_config": {"quorum": 1, "update_format": "fp32"},
        }
        reply = await served.call("POST", paths.TASKS, served.submission(account, spec, 2 * TOKEN), by=me)
        assert reply.status_code == 201, reply.text
        made = reply.json()
        held = {}
        for name in ("one", "two"):
            node = await served.enrol(name)
            held[node.keyid] = (node, await _claimed(served, node))
        group = await served.state.store.read(partial(groups.load, group_id=made["id"]))
        nodes = [held[task.last_node or ""] for task in group.tasks]
        assert await served.state.rounds.step(group)
        query = urlencode({"part": 0, "lease_id": nodes[0][1][0], "fence": nodes[0][1][1]})
        asked = await served.call("GET", f"{paths.fl_session_path(made['id'], 'next')}?{query}", by=nodes[0][0])
        step = RoundStep.model_validate_json(asked.content)
        assert step.state == "train", asked.text
        yield Training(served, me, (nodes[0][0], nodes[1][0]), made["id"], (nodes[0][1], nodes[1][1]), step)


async def test_an_update_comes_from_who_holds_the_part_by_its_current_lease(training: Training) -> None:
    first, second = training.nodes
    _, fence = training.leases[0]
    stranger = await training.served.enrol("stranger")

    replies = {
        "a stale fence": await training.put(training.where(fence=fence - 1), by=first),
        "a fence to come": await training.put(training.where(fence=fence + 1), by=first),
        "no lease": await training.put(training.where(lease_id=""), by=first),
        "another's lease": await training.put(training.where(lease_id=training.leases[1][0]), by=first),
        "another's part": await training.put(training.where(0, at=(1, 0, 1)), by=first),
        "another's part and lease": await training.put(training.where(1), by=first),
        "the holder of the other part": await training.put(training.where(0), by=second),
    }
    outside = [
        (await training.put(training.where(), by=who)).status_code for who in (stranger, training.submitter, None)
    ]

    assert {name: (reply.status_code, reply.json()["code"]) for name, reply in replies.items()} == dict.fromkeys(
        replies, (409, "stale_fence")
    )
    assert outside == [404, 403, 401]
    assert (await training.round()).updates == ()
    assert training.files() == []


async def test_an_update_is_for_the_open_round_and_from_its_model(training: Training) -> None:
    node = training.nodes[0]
    refused = {
        training.where(base="ab" * 32): "starts from the model",
        training.where(base=""): "starts from the model",
        training.where(at=(1, 1, 0)): "late",
        training.where(at=(2, 0, 0)): "late",
        training.where(at=(0, 0, 0)): "late",
    }

    replies = {where: await training.put(where, by=node) for where in refused}

    for where, why in refused.items():
        assert (replies[where].status_code, replies[where].json()["code"]) == (409, "conflict"), where
        assert why in replies[where].text
    assert (await training.put(training.where(0, at=(1, 0, 7)), by=node)).status_code == 404
    assert (await training.round()).updates == ()
    assert training.files() == []


@pytest.mark.parametrize(
    "changed",
    [
        {"at": ("one", 0, 0)},
        {"at": (1, "-1", 0)},
        {"at": (1, 0, "1e0")},
        {"at": (1, 0, "%D9%A1")},  # a digit, but not one of ours
        {"at": ("9" * 400, 0, 0)},
        {"fence": "9" * 400},
        {"base": "a" * 65},
        {"lease_id": "a" * 129},
        {"loss": "nan"},
        {"samples": "inf"},
        {"steps": "many"},
        {"train_s": "1" * 33},
    ],
)
async def test_what_an_update_says_of_itself_is_checked(training: Training, changed: dict[str, object]) -> None:
    reply = await training.put(training.where(**changed), by=training.nodes[0])  # type: ignore[arg-type]

    assert (reply.status_code, reply.json()["code"]) == (422, "bad_field"), reply.text
    assert training.files() == []


async def test_an_update_is_no_longer_than_its_model_allows(training: Training) -> None:
    most = training.step.base_size + EXTRA_BYTES

    long = await training.put(training.where(), bytes(most + 1), by=training.nodes[0])
    files_after = training.files()
    longest = await training.put(training.where(), bytes(most), by=training.nodes[0])

    assert (long.status_code, long.json()["code"]) == (413, "too_large")
    assert files_after == []
    assert longest.json()["size"] == most


async def test_an_update_that_was_changed_on_its_way_is_refused_and_leaves_nothing(training: Training) -> None:
    where, node = training.where(), training.nodes[0]
    headers = training.served.sign("PUT", where, b"what was signed", node)

    reply = await training.served.client.put(where, content=b"what came instead", headers=headers)

    assert (reply.status_code, reply.json()["code"]) == (401, "digest_mismatch")
    assert (await training.round()).updates == ()
    assert training.files() == []


async def test_a_part_sends_one_update_to_a_round(training: Training) -> None:
    where, node = training.where(), training.nodes[0]

    first, again, other = [await training.put(where, body, by=node) for body in (b"one", b"one", b"another")]

    assert (first.json()["created"], again.json()["created"]) == (True, False)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert [update.size for update in (await training.round()).updates] == [3]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",  # a pickle
        HUGE,
        struct.pack("<Q", len(NOT_FINITE)) + NOT_FINITE + struct.pack("<ff", float("nan"), float("inf")),
        struct.pack("<Q", 9_000) + b"[" * 9_000,
        json.dumps({"weights": [1e308] * 100}).encode(),
    ],
    ids=["empty", "pickle", "huge header", "not finite", "deep header", "json"],
)
async def test_an_update_that_is_none_is_left_out_and_the_rounds_go_on(training: Training, body: bytes) -> None:
    sent = [
        await training.put(training.where(0), await training.honest(0), by=training.nodes[0]),
        await training.put(training.where(1), body, by=training.nodes[1]),
    ]

    assert await training.served.state.rounds.step(await training.group())

    assert [reply.status_code for reply in sent] == [200, 200]
    closed = await training.round()
    assert {update.part: update.state for update in closed.updates} == {0: "accepted", 1: "rejected"}
    assert (await training.group()).value.state == "running"


async def test_who_asks_what_a_part_does_holds_it(training: Training) -> None:
    (lease_id, fence), (other_id, other_fence) = training.leases
    where = paths.fl_session_path(training.id, "next")
    asked = [
        {"part": 1, "lease_id": lease_id, "fence": fence},
        {"part": 1, "lease_id": other_id, "fence": other_fence},
        {"part": 0, "lease_id": lease_id, "fence": fence - 1},
    ]

    replies = [await training.served.call("GET", f"{where}?{urlencode(one)}", by=training.nodes[0]) for one in asked]

    assert [(reply.status_code, reply.json()["code"]) for reply in replies] == [(409, "stale_fence")] * 3


async def test_a_session_that_has_ended_takes_nothing_any_more(training: Training) -> None:
    cancelled = await training.served.call(
        "POST", paths.task_path(training.id, "cancel"), raw=b"", by=training.submitter
    )
    await training.served.state.rounds.remove(training.id)

    reply = await training.put(training.where(), by=training.nodes[0])

    assert cancelled.status_code == 200, cancelled.text
    assert (reply.status_code, reply.json()["code"]) == (409, "cancelled")
    assert training.served.state.rounds.folders() == []


async def test_a_model_is_given_in_parts_and_not_again_to_who_has_it(training: Training) -> None:
    where, by = paths.fl_session_path(training.id, "model"), training.submitter
    call = training.served.call

    whole = await call("GET", where, by=by)
    etag = whole.headers["etag"]
    rest = await call("GET", where, by=by, change={"range": "bytes=10-", "if-range": etag})
    other = await call("GET", where, by=by, change={"range": "bytes=10-", "if-range": f'"{"ab" * 32}"'})
    known = await call("GET", where, by=by, change={"if-none-match": etag})
    beyond = await call("GET", where, by=by, change={"range": "bytes=1000000-", "if-range": etag})

    assert (whole.status_code, whole.headers["content-length"]) == (200, str(len(whole.content)))
    assert etag == f'"{sha256(whole.content).hexdigest()}"'
    assert (rest.status_code, rest.content) == (206, whole.content[10:])
    assert rest.headers["content-range"] == f"bytes 10-{len(whole.content) - 1}/{len(whole.content)}"
    assert rest.headers["content-length"] == str(len(rest.content))
    assert (other.status_code, other.content) == (200, whole.content)
    assert (known.status_code, known.content) == (304, b"")
    assert beyond.status_code == 416


async def test_a_model_that_goes_just_before_it_is_read_is_asked_for_again(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(_: str) -> tuple[Path, str, int]:
        return tmp_path / "closed.safetensors", "0" * 64, 10

    monkeypatch.setattr(training.served.state.rounds.intake, "model", gone)

    reply = await training.served.call("GET", paths.fl_session_path(training.id, "model"), by=training.submitter)

    assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")


async def test_nodes_that_say_the_largest_loss_there_is_do_not_hide_the_model(training: Training) -> None:
    served = training.served
    await served.call("POST", paths.fl_session_path(training.id, "stop"), raw=b"", by=training.submitter)
    for part in (0, 1):
        sent = await training.put(
            training.where(part, loss=1.7e308), await training.honest(part), by=training.nodes[part]
        )
        assert sent.status_code == 200, sent.text
    assert await served.state.rounds.step(await training.group())
    await served.clock.advance(LAST_REPORTS)
    await Rounds(served.state).step()

    found = await served.call(
        "GET", f"{paths.fl_session_path(training.id, 'model')}?form=parity", by=training.submitter
    )

    assert found.status_code == 200, found.text
    assert found.json()["model_data"]["global_metrics"]["average_loss"] == pytest.approx(1e100)
