from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from parity_client import Home
from parity_node.control import serve_control
from parity_node.testing.book import command_spec
from parity_node.testing.market import MarketSimulator
from parity_protocol.needs import CidInput, ShardInput
from parity_protocol.shards import seal_shard, shard_digest
from parity_protocol.testing.clock import FakeClock

if TYPE_CHECKING:
    from .conftest import Parity
else:
    Parity = Any

TOKEN = 10**18
CREATOR = "0x" + "ab" * 20


@pytest.fixture
def file(home: Home) -> Path:
    folder = home.path / "node"
    folder.mkdir(parents=True, mode=0o700)
    return folder / "policy.toml"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"type": "command", "command": "sleep 1"}))
    return path


@pytest.fixture
def agent(home: Home, file: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Answer the control socket as a running node does; give what each command gets."""
    answers: dict[str, Any] = {}
    stop: list[anyio.CancelScope] = []
    ready = threading.Event()

    async def handle(request: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = answers[request["command"]]
        return found

    async def body() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(serve_control, home.path / "node", handle)
            while not (home.path / "node/control.json").exists():  # noqa: ASYNC110 - the file is the event
                await anyio.sleep(0.001)
            stop.append(group.cancel_scope)
            ready.set()
            await anyio.sleep_forever()

    token: list[Any] = []

    def run() -> None:
        async def main() -> None:
            token.append(anyio.lowlevel.current_token())
            await body()

        anyio.run(main)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    yield answers.update
    anyio.from_thread.run_sync(stop[0].cancel, token=token[0])
    thread.join(10)


def test_init_writes_a_file_that_limits_nothing_and_never_overwrites(parity: Parity, file: Path) -> None:
    done = parity("node", "policy", "init", "--json")

    assert (done.code, done.json["file"]) == (0, str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("# mine\n")
    assert parity("node", "policy", "init").code == 40
    assert file.read_text() == "# mine\n"


def test_show_says_where_each_rule_comes_from(parity: Parity, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('[allow]\nimages = ["debian"]\n')
    monkeypatch.setenv("RUNNER_MAX_CPUS", "2")

    document = parity("node", "policy", "show", "--json").json
    screen = parity("node", "policy", "show").out

    lines = {line["rule"]: (line["value"], line["from"]) for line in document["lines"]}
    assert lines["policy.images"] == ("debian", f"{file}:2")
    assert lines["policy.max_cpus"] == ("2", "RUNNER_MAX_CPUS")
    assert lines["policy.domains"] == ("nothing", "default")
    assert len(document["digest"]) == 64
    assert "policy.images" in screen
    assert "RUNNER_MAX_CPUS" in screen


def test_a_wrong_file_is_told_with_all_its_mistakes(parity: Parity, file: Path) -> None:
    file.write_text("[allow]\nimage = []\n[limits]\nmemory = 'x'\n")

    done = parity("node", "policy", "show")

    assert done.code == 10
    assert f"{file}:2" in done.err
    assert f"{file}:4" in done.err


def test_a_task_that_fits_is_allowed(parity: Parity, file: Path, task: Path) -> None:
    done = parity("node", "policy", "test", str(task), "--json")

    assert (done.code, done.json["allowed"], done.json["refusals"]) == (0, True, [])


def test_each_rule_that_refuses_a_task_is_named(parity: Parity, file: Path, task: Path) -> None:
    file.write_text(
        '[allow]\nprograms = ["ffmpeg"]\n[price]\nmin_reward = "1"\n[[deny]]\nname = "sleepers"\nprograms = ["sleep"]\n'
    )

    done = parity("node", "policy", "test", str(task))

    assert done.code == 1
    assert [line.split()[1] for line in done.out.splitlines()] == [
        "policy.deny.sleepers:",
        "policy.programs:",
        "policy.min_reward:",
    ]


def test_reward_creator_and_time_can_be_given(parity: Parity, file: Path, task: Path) -> None:
    file.write_text(
        f'[allow]\nhours = ["sat Europe/Rome"]\ncreators = ["{CREATOR}"]\n[price]\nmin_reward_per_hour = "4"\n'
    )
    asked = ["node", "policy", "test", str(task), "--reward", "1", "--creator", CREATOR, "--at"]

    assert parity(*asked, "2026-01-09T23:30:00Z").code == 0  # 15 minutes of work, and Saturday in Rome
    refused = parity(*asked, "2026-01-09T22:30:00Z", "--json")
    assert [each["rule"] for each in refused.json["refusals"]] == ["policy.hours"]
    assert parity(*asked, "yesterday").code == 20


def test_a_submission_and_a_manifest_bring_reward_and_creator(parity: Parity, file: Path, tmp_path: Path) -> None:
    market = MarketSimulator(FakeClock())
    task = market.offer(command_spec("true"), reward=3 * TOKEN)
    token = market._manifest(task, "a" * 64)
    submission = {"spec": task.spec, "order": task.order.model_dump(mode="json"), "reward": str(3 * TOKEN)}

    for name, text in (("m.jws", token), ("s.json", json.dumps(submission))):
        (tmp_path / name).write_text(text)
        document = parity("node", "policy", "test", str(tmp_path / name), "--json").json
        assert (document["reward"], document["creator"]) == (str(3 * TOKEN), task.order.creator)


@pytest.mark.parametrize(
    "text", ["[]", "{", "a.b.c", '{"spec": 1}', '{"type": "command"}', '{"spec": "{}", "reward": 1}']
)
def test_what_is_no_task_is_refused(parity: Parity, file: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)

    assert 20 <= parity("node", "policy", "test", str(tmp_path / "x")).code < 40


def test_isolation_is_compared_with_what_the_running_node_has_proved(
    parity: Parity, file: Path, task: Path, agent: Callable[[Mapping[str, Any]], None]
) -> None:
    file.write_text('[isolation]\ncommand = "bwrap"\n')
    agent({"status": {"executors": {"command": {"available": True, "isolation": "process"}}}})

    done = parity("node", "policy", "test", str(task), "--json")

    assert [each["rule"] for each in done.json["refusals"]] == ["policy.isolation"]


def test_without_a_running_node_isolation_is_left_out_and_told(parity: Parity, file: Path, task: Path) -> None:
    file.write_text('[isolation]\ncommand = "bwrap"\n')

    done = parity("node", "policy", "test", str(task))

    assert done.code == 0
    assert "not checked  policy.isolation" in done.err


def test_show_tells_what_the_running_node_does_differently(
    parity: Parity, file: Path, agent: Callable[[Mapping[str, Any]], None]
) -> None:
    file.write_text("")
    agent({"policy": {"digest": "0" * 64, "problem": ""}})

    assert "another policy" in parity("node", "policy", "show").err
    agent({"policy": {"digest": "0" * 64, "problem": "the edit is wrong"}})
    assert "the edit is wrong" in parity("node", "policy", "show").err


def test_a_part_of_a_sharded_session_is_judged_by_its_own_source(parity: Parity, file: Path, tmp_path: Path) -> None:
    file.write_text('[allow]\nsources = ["cid", "https"]\n')
    sealed = [seal_shard(source, bytes(16)) for source in (CidInput(cid="bafkqaaa"), ShardInput(shard="own"))]
    spec = {"type": "federated_learning", "data_mode": "sharded", "shards": [shard_digest(each) for each in sealed]}
    for part, each in enumerate(sealed):
        document = {"spec": json.dumps(spec), "shard": each, "part": part}
        (tmp_path / f"{part}.json").write_text(json.dumps(document))

    done = [parity("node", "policy", "test", f"{part}.json", "--json").json["refusals"] for part in range(2)]

    rules = [[refusal["rule"] for refusal in refusals] for refusals in done]
    assert "policy.sources" not in rules[0]
    assert "policy.sources" in rules[1]
