"""What a submitter is shown of sessions: those in rounds, and those whose parts are merged at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from parity_market.operations import groups
from parity_market.testing.rig import inline
from parity_market.testing.served import TOKEN, Served, Signer, serve_in_process
from parity_protocol.api import paths
from parity_protocol.api.rounds import FlSessionReply, FlSessionsReply
from parity_protocol.testing.keys import deterministic_evm_key

DATA = b"a,b,target\n" + b"".join(b"%d,%d,%d\n" % (i, i * 7 % 13, i % 2) for i in range(60))
CUT = {"strategy": "random", "total_parts": 2, "min_samples": 2}
FOREST = {"model_type": "random_forest", "model_config": {"num_trees": 4}}
NETWORK = {
    "model_type": "neural_network",
    "model_config": {"hidden_size": 2},
    "train_config": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
    "total_rounds": 2,
}


async def submitted(served: Served, model: dict[str, Any]) -> tuple[Signer, str]:
    account = deterministic_evm_key("submitter")
    await served.fund(account, 50 * TOKEN)
    me = await served.sign_in(account)
    stored = await served.call("POST", paths.STORAGE_UPLOAD, raw=DATA, by=me)
    spec = {
        "type": "federated_learning",
        "dataset_cid": stored.json()["cid"],
        "data_format": "csv",
        "partition_config": CUT,
        **model,
    }
    reply = await served.call("POST", paths.TASKS, served.submission(account, spec, 2 * TOKEN), by=me)
    assert reply.status_code == 201, reply.text
    return me, reply.json()["id"]


async def show(served: Served, me: Signer, session_id: str) -> FlSessionReply:
    reply = await served.call("GET", paths.fl_session_path(session_id), by=me)
    assert reply.status_code == 200, reply.text
    return FlSessionReply.model_validate_json(reply.content)


async def test_a_session_without_rounds_is_shown_and_listed_but_has_none_to_pause(served: Served) -> None:
    me, session_id = await submitted(served, FOREST)
    stranger = await served.sign_in(deterministic_evm_key("stranger"))

    found = await show(served, me, session_id)
    page = await served.call("GET", paths.FL_SESSIONS, by=me)
    pause = await served.call("POST", paths.fl_session_path(session_id, "pause"), by=me)
    theirs = await served.call("GET", paths.fl_session_path(session_id), by=stranger)

    assert (found.state, found.round, found.total_rounds, found.rounds) == ("running", 0, 1, ())
    assert len(str(found.settings["assignment_hash"])) == 64
    assert found.settings["model_config"] == {
        "num_trees": 4,
        "max_depth": 10,
        "min_samples_split": 2,
        "min_samples_leaf": 1,
        "max_features": 0,
        "subsample": 1.0,
        "bootstrap_samples": True,
        "oob_score": True,
        "num_classes": 0,
        "random_state": 42,
        "criterion": "gini",
        "mode": "union",
        "task": "classification",
        "max_bins": 32,
    }
    assert FlSessionsReply.model_validate_json(page.content).sessions == (found,)
    assert (pause.status_code, theirs.status_code) == (404, 404)
    assert "trains in rounds" in pause.text


async def test_the_round_record_names_the_cut_that_all_parts_were_made_by(tmp_path: Path) -> None:
    async with serve_in_process(tmp_path, offload=inline) as served:
        me, session_id = await submitted(served, NETWORK)
        before = await show(served, me, session_id)
        group = await served.state.store.read(partial(groups.load, group_id=session_id))
        assert await served.state.rounds.step(group)

        found = await show(served, me, session_id)

    assert (before.state, before.round, before.total_rounds, before.rounds) == ("running", 0, 2, ())
    assert [one.assignment_hash for one in found.rounds] == [before.settings["assignment_hash"]]
    assert found.settings["model_config"] == before.settings["model_config"]
    assert found.settings["model_config"] | NETWORK["model_config"] == found.settings["model_config"]
    assert found.settings["train_config"] == {**NETWORK["train_config"], "optimizer": "sgd", "momentum": 0.9}


async def test_a_task_of_another_kind_is_no_session(served: Served) -> None:
    me, _ = await submitted(served, FOREST)
    spec = {"type": "command", "command": ["true"]}
    body = served.submission(deterministic_evm_key("submitter"), spec, TOKEN)
    made = await served.call("POST", paths.TASKS, body, by=me)

    assert made.status_code == 201, made.text
    assert (await served.call("GET", paths.fl_session_path(made.json()["id"]), by=me)).status_code == 404
