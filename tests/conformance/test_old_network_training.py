"""Federated sessions of the old network, replayed: what its client and runners sent is taken, what they read is answered.

``tests/vectors/parity_network/training.json`` holds a recorded session of its unchanged programs, two runners and one
round. Ids, times and the data set's CID are replaced; nothing else is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from parity_market.loops.rounds import Rounds
from parity_market.operations import groups
from parity_market.testing.rig import inline
from parity_market.testing.served import Served, Signer, serve_in_process
from parity_protocol.api import paths
from parity_protocol.testing.keys import deterministic_evm_key

CAPTURED: dict[str, dict[str, Any]] = {
    one["name"]: one
    for one in json.loads((Path(__file__).parents[1] / "vectors/parity_network/training.json").read_text())
}
CREATOR = "0x90F79bf6EB2c4f870365E785982E1f101E93b906"
DATA = b"f1,f2,f3,f4,label\n" + b"".join(
    b"%.3f,%.3f,%.3f,%.3f,%d\n" % (i % 7 + kind, i % 5 + kind, 2 + kind, 3 + kind, kind)
    for i in range(50)
    for kind in range(3)
)
UNKNOWN = "00000000-0000-0000-0000-000000000001"
WALLET = "0x" + "52" * 20
MODEL_UPDATES = paths.FL_MODEL_UPDATES


def header(one: dict[str, Any]) -> dict[str, str]:
    return dict(one["headers"])


def same_shape(found: Any, wanted: Any, place: str = "") -> None:
    """Check that all that the old server answers is there, of the same type; more may be."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict), place
        for name, value in wanted.items():
            assert name in found, f"{place}.{name}"
            same_shape(found[name], value, f"{place}.{name}")
    elif isinstance(wanted, list):
        assert isinstance(found, list), place
        assert len(found) == len(wanted), place
    elif isinstance(wanted, float) or (isinstance(wanted, int) and not isinstance(wanted, bool)):
        assert isinstance(found, (int, float)), place
    elif wanted is not None:
        assert type(found) is type(wanted), place


@dataclass
class Play:
    """A market of ours and the old network's programs, which know it by URL alone."""

    served: Served
    uploader: Signer
    cid: str

    async def send(self, one: dict[str, Any], *, path: str | None = None, **changed: object) -> httpx.Response:
        """Send what was captured, with some members of its body replaced."""
        raw = one["body"].encode()
        if changed:
            raw = json.dumps({**json.loads(raw), **changed}).encode()
        return await self.served.call(one["method"], path or one["path"], raw=raw, change=header(one))

    async def create(self, **changed: object) -> httpx.Response:
        body = json.loads(CAPTURED["create"]["body"])
        data = {**body["training_data"], "dataset_cid": self.cid, "dataset_size": len(DATA)}
        return await self.send(CAPTURED["create"], **{"training_data": data, **changed})

    async def started(self, **changed: object) -> str:
        """Return a session that was created and started."""
        made = await self.create(**changed)
        assert made.status_code == 201, made.text
        session_id = str(made.json()["id"])
        reply = await self.send(CAPTURED["start"], path=self.path(session_id, "start"))
        assert (reply.status_code, reply.json()) == (200, json.loads(CAPTURED["start"]["answer"])), reply.text
        await self.step(session_id)
        return session_id

    def path(self, session_id: str, leaf: str = "") -> str:
        return paths.fl_session_path(session_id, leaf)

    async def step(self, session_id: str) -> None:
        while True:
            group = await self.served.state.store.read(partial(groups.load, group_id=session_id))
            if not await self.served.state.rounds.step(group):
                break
        await Rounds(self.served.state).step()

    async def register(self, device: str, wallet: str = WALLET) -> httpx.Response:
        change = {"X-Device-ID": device}
        return await self.served.call(
            "POST", paths.RUNNERS, {"wallet_address": wallet, "status": "online"}, change=change
        )

    async def tasks(self, session_id: str, number: int, device: str) -> list[dict[str, Any]]:
        reply = await self.served.call("GET", self.path(session_id, f"rounds/{number}"), change={"X-Device-ID": device})
        assert reply.status_code == 200, reply.text
        return list(reply.json()["tasks"])

    async def start_task(self, task_id: str, device: str) -> httpx.Response:
        return await self.served.call(
            "POST", paths.runner_task_path(task_id, "start"), raw=b"", change={"X-Device-ID": device}
        )

    async def take_part(self, session_id: str, number: int, part: int, runner: str) -> dict[str, Any]:
        """Do what a captured runner did, in its words, for one round; returns the task that it got."""
        device = CAPTURED[f"start task of {runner}"]["headers"]["X-Device-Id"]
        task = (await self.tasks(session_id, number, device))[part]
        assert task["status"] == "pending"
        reply = await self.start_task(task["id"], device)
        assert reply.status_code == 200, reply.text
        found = dict(reply.json())
        done = await self.send(
            CAPTURED[f"result of {runner}"], path=paths.runner_task_path(task["id"], "result"), task_id=task["id"]
        )
        assert (done.status_code, done.content) == (200, b"")
        sent = await self.send(
            CAPTURED[f"update of {runner}"], session_id=session_id, round_id=found["config"]["round_id"]
        )
        assert sent.status_code == 200, sent.text
        assert sent.content == CAPTURED[f"update of {runner}"]["answer"].encode()
        return found


RUNNERS = ("runner 3", "runner 4")


def device_of(runner: str) -> str:
    return str(CAPTURED[f"start task of {runner}"]["headers"]["X-Device-Id"])


@pytest.fixture
async def play(tmp_path: Path) -> AsyncIterator[Play]:
    async with serve_in_process(tmp_path, offload=inline) as served:
        me = await served.sign_in(deterministic_evm_key("uploader"))
        stored = await served.call("POST", f"{paths.STORAGE_UPLOAD}?visibility=public", raw=DATA, by=me)
        found = Play(served, me, stored.json()["cid"])
        for runner in RUNNERS:
            assert (await found.register(device_of(runner))).status_code == 201
        yield found


async def test_a_recorded_session_of_the_old_network_runs_here_from_its_first_byte_to_its_model(play: Play) -> None:
    made = await play.create()
    session_id = made.json()["id"]
    started = await play.send(CAPTURED["start"], path=play.path(session_id, "start"))
    await play.step(session_id)
    tasks = [await play.take_part(session_id, 1, part, runner) for part, runner in enumerate(RUNNERS)]
    await play.step(session_id)
    model = await play.send(CAPTURED["model"], path=play.path(session_id, "model"))

    assert (made.status_code, started.status_code, model.status_code) == (201, 200, 200), model.text
    wanted = json.loads(CAPTURED["create"]["answer"])
    assert list(made.json()) == list(wanted)
    assert made.json() == {
        **wanted,
        **{name: made.json()[name] for name in ("id", "created_at", "updated_at")},
    }
    assert started.content == CAPTURED["start"]["answer"].encode()
    for runner, task in zip(RUNNERS, tasks, strict=True):
        same_shape(task, json.loads(CAPTURED[f"start task of {runner}"]["answer"]))
    assert [task["config"]["partition_config"]["part_index"] for task in tasks] == [0, 1]
    assert [task["config"]["partition_config"]["total_parts"] for task in tasks] == [2, 2]
    same_shape(model.json(), json.loads(CAPTURED["model"]["answer"]))
    # Both parts have the same number of rows, whatever their runners claim: the model is the plain mean.
    sent = [json.loads(CAPTURED[f"update of {runner}"]["body"])["weights"]["layer_weights"] for runner in RUNNERS]
    mean = [(one + two) / 2 for one, two in zip(*sent, strict=True)]
    found = model.json()["model_data"]
    assert found["aggregated_model"]["layer_weights"] == pytest.approx(mean, abs=1e-6)
    assert found["weights"] == found["gradients"] == found["aggregated_model"]
    assert found["participant_count"] == 2
    assert found["global_metrics"]["average_loss"] == pytest.approx((0.1301544048513774 + 1.1626681280296247) / 2)
    assert model.headers["content-type"] == "application/json; charset=utf-8"


async def test_every_answer_to_who_does_not_sign_is_labelled(play: Play) -> None:
    session_id = await play.started()

    replies = [
        await play.create(),
        await play.served.call("GET", play.path(session_id)),
        await play.served.call("GET", play.path(session_id, "model")),
        await play.register("d"),
    ]

    assert [reply.headers.get("x-parity-tier") for reply in replies] == ["legacy"] * 4


async def test_two_rounds_start_from_the_model_of_the_last_and_each_round_is_a_task_of_its_own(play: Play) -> None:
    session_id = await play.started(total_rounds=2)

    rounds = []
    for number in (1, 2):
        rounds.append([await play.take_part(session_id, number, part, one) for part, one in enumerate(RUNNERS)])
        await play.step(session_id)
    shown = (await play.served.call("GET", play.path(session_id))).json()

    ids = {task["id"] for tasks in rounds for task in tasks}
    assert len(ids) == 4
    first, second = (tasks[0]["config"]["global_model"]["aggregated_model"]["layer_weights"] for tasks in rounds)
    assert first == [0.0] * 5
    sent = [json.loads(CAPTURED[f"update of {one}"]["body"])["weights"]["layer_weights"] for one in RUNNERS]
    assert second == pytest.approx([(a + b) / 2 for a, b in zip(*sent, strict=True)], abs=1e-6)
    assert (shown["status"], shown["current_round"], shown["participant_count"]) == ("completed", 2, 2)


async def test_nothing_is_paid_to_a_device_and_its_node_id_says_what_it_is(play: Play) -> None:
    session_id = await play.started()
    for part, runner in enumerate(RUNNERS):
        await play.take_part(session_id, 1, part, runner)
    await play.step(session_id)

    group = await play.served.state.store.read(partial(groups.load, group_id=session_id))

    assert [task.last_node for task in group.tasks] == [f"legacy:{device_of(runner)}" for runner in RUNNERS]
    assert [task.reward for task in group.tasks] == [0, 0]
    assert str(group.value.state) == "completed"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", paths.FL_SESSIONS, "{}", 400, "Invalid request body"),
        ("GET", paths.fl_session_path("xyz"), "", 400, "Invalid session ID"),
        ("GET", paths.fl_session_path(UNKNOWN), "", 404, "Session not found"),
        ("GET", paths.fl_session_path(UNKNOWN, "model"), "", 404, "session not found: record not found"),
        ("POST", paths.fl_session_path(UNKNOWN, "start"), "", 400, "failed to get session: record not found"),
        ("POST", MODEL_UPDATES, "{}", 400, "Invalid request body"),
        ("GET", paths.fl_session_path("xyz", "rounds/a"), "", 400, "Invalid session ID"),
        ("POST", paths.RUNNERS, "{}", 400, "Invalid request body"),
        ("POST", paths.RUNNERS, "no", 400, "Invalid request body"),
        ("POST", paths.runner_task_path("xyz", "result"), "{}", 400, "Invalid task ID"),
    ],
)
async def test_what_the_old_server_refuses_is_refused_in_its_words(
    play: Play, method: str, path: str, body: str, status: int, words: str
) -> None:
    reply = await play.served.call(method, path, raw=body.encode(), change={"X-Device-ID": "d"})

    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    assert reply.json()["error"].startswith(words)


async def test_who_has_no_sessions_gets_an_empty_list(play: Play) -> None:
    reply = await play.served.call("GET", f"{paths.FL_SESSIONS}?creator={CREATOR}")

    assert (reply.status_code, reply.json()) == (200, {"sessions": [], "count": 0})


async def test_a_creator_finds_the_sessions_that_were_made_in_its_name(play: Play) -> None:
    session_id = await play.started()

    mine = (await play.served.call("GET", f"{paths.FL_SESSIONS}?creator={CREATOR}")).json()
    others = (await play.served.call("GET", f"{paths.FL_SESSIONS}?creator={WALLET}")).json()

    assert [one["id"] for one in mine["sessions"]] == [session_id]
    assert (mine["count"], others["count"]) == (1, 0)


async def test_a_session_is_started_once_and_has_a_model_only_at_its_end(play: Play) -> None:
    session_id = await play.started()

    again = await play.send(CAPTURED["start"], path=play.path(session_id, "start"))
    early = await play.served.call("GET", play.path(session_id, "model"))

    assert (again.status_code, again.json()) == (400, {"error": "session must be in pending status to start"})
    assert early.status_code == 404
    assert early.json()["error"].startswith("no trained model available")


async def test_both_prefixes_answer(play: Play) -> None:
    reply = await play.served.call("GET", paths.fl_session_path(UNKNOWN).replace("/api/v1/", "/api/"))

    assert (reply.status_code, reply.json()) == (404, {"error": "Session not found"})
