from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from parity_client.testing import FakeMarket, FakeTask, JumpClock
from parity_contracts.chain.calls import Approve, Call, Faucet, Stake
from parity_contracts.chain.sending import send
from parity_protocol.api import paths
from parity_protocol.errors import EscrowTooLow
from parity_protocol.signing.keys import EvmKey
from parity_protocol.testing.keys import deterministic_evm_key

if TYPE_CHECKING:
    from .conftest import ClosableChain, Parity
else:
    ClosableChain = Parity = Any


def only_task(market: FakeMarket) -> FakeTask:
    [task] = market.tasks.values()
    return task


def spec_of(market: FakeMarket) -> dict[str, Any]:
    return dict(json.loads(only_task(market).request.spec))


def test_a_command_is_submitted_as_it_was_typed(parity: Parity, joined: FakeMarket) -> None:
    done = parity(
        *("task", "submit", "--reward", "0.1", "--title", "t", "--input", "rows=bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"),
        *("--env", "A=b=c", "--timeout", "5m", "--memory", "1g", "--cpus", "2", "--attempts", "2", "--valid-for", "1h"),
        *("--", "sh", "-c", "echo $A --json", "--reward"),
    )  # fmt: skip

    assert done.code == 0
    assert done.out.strip() == only_task(joined).id
    assert spec_of(joined) == {
        "type": "command",
        "command": ["sh", "-c", "echo $A --json", "--reward"],
        "title": "t",
        "inputs": [
            {"kind": "cid", "name": "rows", "cid": "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"}
        ],
        "env": {"A": "b=c"},
        "budgets": {"wall_time_s": 300.0},
        "resources": {"memory_bytes": 1 << 30, "cpus": 2.0},
        "max_attempts": 2,
    }
    order = only_task(joined).request.order
    assert order.max_reward == 10**17
    assert order.deadline == int(joined.clock.now().timestamp()) + 3_600


def test_an_input_that_is_no_cid_is_refused_before_anything_is_signed(parity: Parity, joined: FakeMarket) -> None:
    done = parity("task", "submit", "--reward", "0.1", "--input", "rows=bafyfoo", "--", "wc", "inputs/rows")

    assert done.code == 20
    assert "--input rows: 'bafyfoo' is not a CID" in done.err
    assert "parity data add" in done.err
    assert joined.tasks == {}


def test_waiting_shows_steps_and_prints_the_result(parity: Parity, joined: FakeMarket) -> None:
    done = parity("task", "submit", "--reward", "0.1", "--wait", "--", "echo", "hello")

    assert done.code == 0
    assert done.out == "hello\n"
    assert "claim" in done.err
    assert "accept" in done.err


def test_waiting_says_why_nobody_takes_the_work(
    parity: Parity, joined: FakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parity_cli.waiting.WHY_AFTER_S", 0.0)
    monkeypatch.setattr("parity_cli.waiting.WHY_EVERY_S", 0.0)
    joined.finish_after = 20

    done = parity("task", "submit", "--reward", "0.1", "--wait", "--", "echo", "hello")

    assert (done.code, done.out) == (0, "hello\n")
    assert done.err.count("no node fits") == 1


def test_who_stops_watching_is_told_that_the_work_goes_on(
    parity: Parity, joined: FakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()

    monkeypatch.setattr("parity_cli.commands.task.tell_why", interrupt)
    joined.finish_after = None

    done = parity("task", "submit", "--reward", "0.1", "--wait", "--", "echo", "hello")

    assert done.code == 130
    assert f"parity task result --wait {only_task(joined).id}" in done.err


def test_waiting_with_json_is_one_document(parity: Parity, joined: FakeMarket) -> None:
    done = parity("task", "submit", "--reward", "0.1", "--wait", "--json", "--", "echo", "hello")

    assert done.json["id"] == only_task(joined).id
    assert done.json["result"]["output"] == "hello\n"
    assert done.json["result"]["node_id"] == joined.node_id


def test_a_failed_task_has_its_own_exit_code_and_is_named_in_json(parity: Parity, joined: FakeMarket) -> None:
    joined.finish_after = None
    parity("task", "submit", "--reward", "0.1", "--", "false")
    task = only_task(joined)
    task.failure, task.message = "exit_status", "exit status 1"
    joined.step(task, "task_fault", "failed")

    people, programs = parity("task", "result", task.id), parity("task", "result", task.id, "--json")

    assert (people.code, programs.code) == (70, 70)
    assert "exit status 1" in people.err
    assert programs.json["error"]["code"] == "execution_failed"


def test_a_wait_that_is_over_says_that_work_goes_on(parity: Parity, joined: FakeMarket) -> None:
    joined.finish_after = None
    task_id = parity("task", "submit", "--reward", "0.1", "--", "sleep", "99").out.strip()

    late = parity("task", "result", task_id, "--timeout", "1m")
    now = parity("task", "result", task_id)

    assert (late.code, now.code) == (42, 42)
    assert "ask again" in late.err


def test_a_spec_comes_from_a_file_or_standard_input(parity: Parity, joined: FakeMarket, tmp_path: Path) -> None:
    text = '{"type": "command", "command": ["echo", "é"]}'
    (tmp_path / "spec.json").write_text(text, encoding="utf-8")

    assert parity("task", "submit", "--reward", "1", "--spec", str(tmp_path / "spec.json")).code == 0
    assert only_task(joined).request.spec == text


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--reward", "1"], 2, "behind --"),
        (["--", "echo"], 2, "--reward"),
        (["--reward", "one", "--", "echo"], 20, "'one'"),
        (["--reward", "1", "--spec", "missing.json"], 22, "missing.json"),
        (["--reward", "1", "--spec", "x", "--", "echo"], 2, "leave out the command"),
        (["--reward", "1", "--input", "nocid", "--", "echo"], 2, "NAME="),
        (["--reward", "1", "--timeout", "soon", "--", "echo"], 20, "15m"),
        (["--reward", "2", "--max-reward", "1", "--", "echo"], 20, "max_reward"),
        (["--reward", "1", "--memory", "1k", "--", "echo"], 20, "memory_bytes"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_submitted(
    parity: Parity, joined: FakeMarket, arguments: list[str], code: int, word: str
) -> None:
    done = parity("task", "submit", *arguments)

    assert done.code == code
    assert word in done.err
    assert not joined.tasks


def test_what_the_market_refuses_is_told_with_its_next_step(parity: Parity, joined: FakeMarket) -> None:
    joined.fail_next(EscrowTooLow("only 0.5 is free"), path="/api/v1/tasks")

    done = parity("task", "submit", "--reward", "1", "--", "echo")

    assert done.code == 52
    assert "only 0.5 is free" in done.err
    assert "parity wallet allow" in done.err


def test_show_proves_the_receipt(parity: Parity, joined: FakeMarket) -> None:
    task_id = parity("task", "submit", "--reward", "0.1", "--wait", "--json", "--", "echo", "hello").json["id"]

    good = parity("task", "show", task_id, "--json").json
    screen = parity("task", "show", task_id).out
    task = only_task(joined)
    task.manifest_hash = "0x" + "99" * 32
    bad = parity("task", "show", task_id, "--json").json

    assert good["receipt"]["valid"] is True
    assert good["receipt"]["operator"] == joined.operator.address
    assert [event["event"] for event in good["events"]] == ["submit", "claim", "report", "accept"]
    assert "valid, signed by operator" in screen
    assert bad["receipt"]["valid"] is False
    assert "manifest_hash" in bad["receipt"]["problem"]


def test_a_proof_is_held_against_the_chain(parity: Parity, joined: FakeMarket, chain: ClosableChain) -> None:
    owner = deterministic_evm_key("owner")

    async def stake(operator: EvmKey) -> None:
        calls: list[Call] = [
            Faucet(owner.address, 1),
            Approve(1),
            Stake(1, joined.node_id, owner.address, operator.address),
        ]
        await send(chain, calls, owner, clock=JumpClock())

    task_id = parity("task", "submit", "--reward", "0.1", "--wait", "--json", "--", "echo", "hello").json["id"]

    nobody = parity("task", "show", "--prove", task_id)
    anyio.run(stake, joined.operator)
    right = parity("task", "show", "--prove", task_id, "--json")
    joined.operator = deterministic_evm_key("impostor")
    wrong = parity("task", "show", "--prove", task_id)

    assert (nobody.code, right.code, wrong.code) == (1, 0, 1)
    assert "no operator" in nobody.out
    assert right.json["receipt"]["on_chain"] is True
    assert "the chain names" in wrong.out


def test_list_logs_why_and_cancel(parity: Parity, joined: FakeMarket) -> None:
    joined.finish_after = None
    task_id = parity("task", "submit", "--reward", "0.1", "--", "echo", "hello").out.strip()
    only_task(joined).log = "some output\n"

    assert parity("task", "list", "--json").json["tasks"][0]["id"] == task_id
    assert "echo hello" in parity("task", "list").out
    assert parity("task", "logs", task_id).out == "some output\n"
    assert parity("task", "logs", task_id, "--json").json == {"task_id": task_id, "text": "some output\n"}
    assert "capability.kind" in parity("task", "why", task_id).out
    assert parity("task", "why", task_id, "--json").json["tasks"][0]["nodes_fit"] == 0
    assert parity("task", "cancel", task_id).code == 0
    assert parity("task", "result", task_id).code == 43


def test_following_the_logs_of_a_waiting_task_says_that_it_waits(
    parity: Parity, joined: FakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def printed(*_: object, **__: object) -> AsyncIterator[str]:
        yield "some output\n"

    monkeypatch.setattr("parity_client.client.Client.logs", printed)
    joined.finish_after = None
    task_id = parity("task", "submit", "--reward", "0.1", "--", "echo", "hello").out.strip()

    done = parity("task", "logs", "-f", task_id)

    assert (done.code, done.out) == (0, "some output\n")
    assert f"parity task why {task_id}" in done.err


@pytest.mark.parametrize(("content", "first_line"), [(b"hello\n", "hello"), (b"\x08\0\0{}", "cpu_seconds")])
def test_what_a_task_printed_is_its_result_whatever_was_measured(
    parity: Parity, joined: FakeMarket, content: bytes, first_line: str
) -> None:
    joined.finish_after = None
    task_id = parity("task", "submit", "--reward", "0.1", "--", "echo", "hello").out.strip()
    only_task(joined).metrics = {"cpu_seconds": 0.5}
    anyio.run(joined.finish, only_task(joined), content)

    shown = parity("task", "result", task_id).out

    assert shown.split()[0] == first_line
    assert (shown == "hello\n") is (first_line == "hello")


def test_a_result_goes_to_a_new_file_only(parity: Parity, joined: FakeMarket, tmp_path: Path) -> None:
    joined.finish_after = None
    content = bytes(range(256)) * 1_000
    task_id = parity("task", "submit", "--reward", "0.1", "--", "cat", "x").out.strip()
    anyio.run(joined.finish, only_task(joined), content)

    first = parity("task", "result", task_id, "-o", str(tmp_path / "out"), "--json")
    again = parity("task", "result", task_id, "-o", str(tmp_path / "out"))
    binary = parity("task", "result", task_id, "--json")

    assert (tmp_path / "out").read_bytes() == content
    assert first.json["size"] == len(content)
    assert again.code == 20
    assert binary.json["output"] is None
    assert binary.json["data"]


def test_a_result_folder_is_shown_and_written_whole(parity: Parity, joined: FakeMarket, tmp_path: Path) -> None:
    joined.finish_after = None
    left = tmp_path / "left"
    (left / "files" / "deep").mkdir(parents=True)
    (left / "output.log").write_text("epoch 1\n")
    (left / "files" / "deep" / "model.bin").write_bytes(b"m" * 300_000)
    task_id = parity("task", "submit", "--reward", "0.1", "--", "train").out.strip()
    anyio.run(joined.finish, only_task(joined), left)

    shown = parity("task", "result", task_id)
    document = parity("task", "result", task_id, "--json").json
    written = parity("task", "result", task_id, "-o", str(tmp_path / "out"), "--json")

    assert shown.out.splitlines()[0] == "epoch 1"
    assert "files/deep/model.bin" in shown.out
    assert f"next: parity task result {task_id} -o FOLDER" in shown.out
    assert document["output"] == "epoch 1\n"
    assert document["files"][0] == {"path": "files/deep/model.bin", "size": 300_000}
    assert (tmp_path / "out" / "files" / "deep" / "model.bin").read_bytes() == b"m" * 300_000
    assert (tmp_path / "out" / "output.log").read_text() == "epoch 1\n"
    assert written.json["cid"] == document["cid"]


def test_a_group_is_shown_and_its_result_is_the_merge(parity: Parity, joined: FakeMarket, tmp_path: Path) -> None:
    spec = {
        "type": "federated_learning",
        "model_type": "random_forest",
        "partition_config": {"strategy": "random", "total_parts": 2, "min_samples": 1},
    }
    (tmp_path / "forest.json").write_text(json.dumps(spec))

    done = parity("task", "submit", "--reward", "1", "--spec", str(tmp_path / "forest.json"), "--wait", "--json")
    joined.groups[done.json["id"]]["metrics"] = {"accuracy": 0.5}

    assert done.json["kind"] == "group"
    assert done.json["result"]["output"] == "merged"
    assert "0.5" in parity("task", "show", done.json["id"]).out
    assert "accuracy" in parity("task", "result", done.json["id"]).out


def test_an_unknown_task_says_where_to_look(parity: Parity, joined: FakeMarket) -> None:
    done = parity("task", "show", "nope")

    assert done.code == 22
    assert "parity task list" in done.err


def test_without_a_market_the_first_step_is_named(parity: Parity) -> None:
    done = parity("task", "list")

    assert done.code == 10
    assert "parity config use" in done.err


def test_a_dry_run_asks_the_market_and_signs_nothing(parity: Parity, joined: FakeMarket) -> None:
    taken = parity("task", "submit", "--reward", "0.1", "--dry-run", "--", "true")
    joined.fail_next(EscrowTooLow("only 0 are free"), path=paths.TASK_CHECK)
    refused = parity("task", "submit", "--reward", "0.1", "--dry-run", "--wait", "--", "true")

    assert (taken.code, taken.out) == (0, "the market would take it, as 1 task; nothing was signed\n")
    assert refused.code == 52
    assert "only 0 are free" in refused.err
    assert joined.tasks == {}
