"""To the trainer Flower is a market: what a ClientApp asks becomes a step, the update its answer."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from parity_fl.engines.flower import FLWR_VERSION, Fleet, bundle_digest
from parity_node.executors import flower_process
from parity_node.executors.base import Limits
from parity_node.executors.flower import FlowerRounds
from parity_node.executors.flower_links import Asked, superlink_address
from parity_node.executors.flower_process import SuperNode, make_super_node
from parity_node.executors.rounds import Place
from parity_protocol.api.rounds import RoundStep
from parity_protocol.errors import (
    DigestMismatch,
    ExecutionFailed,
    ParityError,
    PolicyDenied,
    TaskCancelled,
    TooLarge,
    Unreachable,
)
from parity_protocol.testing.clock import FakeClock

PLACE = Place("group", 1, "lease", 3)
MODEL = b"model"
PEM = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
FLEET = Fleet(FLWR_VERSION, "fl.example.org:9400", PEM, bundle_digest())
LIMITS = Limits(wall_time_s=30.5, cpus=1.0, memory_bytes=1 << 28, disk_bytes=1 << 20, pids=16)
STEP = RoundStep(state="train", round=2, phase=0, total_rounds=3, base=sha256(MODEL).hexdigest(), base_size=len(MODEL))
DONE = RoundStep(state="done", round=4, phase=0, total_rounds=3)


def node(folder: Path) -> SuperNode:
    return SuperNode(folder, folder / "sockets", "02" + "a" * 96, FLEET, FLEET.bundle_sha256, None, LIMITS)


class Market:
    """Answers the questions about registration from a script."""

    def __init__(self, *script: RoundStep | ParityError) -> None:
        self.script = list(script)
        self.known: list[str] = []

    async def flower_step(self, place: Place, *, key: str, known: str, wait_s: float) -> RoundStep:
        assert place == PLACE
        assert key.startswith("02")
        self.known.append(known)
        step = self.script.pop(0)
        if isinstance(step, ParityError):
            raise step
        return step


def rounds(folder: Path, *script: RoundStep | ParityError) -> FlowerRounds:
    return FlowerRounds(Market(*script), PLACE, node(folder), clock=FakeClock())  # type: ignore[arg-type]


def question(step: RoundStep = STEP, body: bytes = MODEL) -> Asked:
    return Asked({"do": "train", "step": step.model_dump_json()}, body)


async def test_a_question_becomes_a_step_and_its_update_the_answer(tmp_path: Path) -> None:
    found, asked = rounds(tmp_path), question()
    await found._take(asked)

    step = await found.next_step(PLACE, wait_s=1.0)
    await found.model(PLACE, step, tmp_path / "model", max_bytes=100)
    taken = await found.send(
        PLACE, step, b"update", {"loss": 0.25, "odd": float("nan")}, digest=sha256(b"update").digest()
    )

    assert (step.round, step.state, (tmp_path / "model").read_bytes()) == (2, "train", MODEL)
    assert taken.sha256 == sha256(b"update").hexdigest()
    assert asked.answered.is_set()
    assert asked.reply == ({"metrics": {"loss": 0.25}}, b"update")


@pytest.mark.parametrize(("body", "most", "error"), [(b"other", 100, DigestMismatch), (MODEL, 4, TooLarge)])
async def test_a_model_that_is_not_the_steps_is_answered_with_an_error(
    tmp_path: Path, body: bytes, most: int, error: type[ParityError]
) -> None:
    found, asked = rounds(tmp_path), question(body=body)
    await found._take(asked)
    step = await found.next_step(PLACE, wait_s=1.0)

    with pytest.raises(error):
        await found.model(PLACE, step, tmp_path / "model", max_bytes=most)
    found._put(DONE)

    assert await found.next_step(PLACE, wait_s=1.0) == DONE
    assert "error" in asked.reply[0]


async def test_a_question_that_is_no_step_ends_the_part_and_blames_nobody_here(tmp_path: Path) -> None:
    found, asked = rounds(tmp_path), Asked({"do": "train", "step": "{}"}, b"")
    await found._take(asked)

    with pytest.raises(ExecutionFailed) as caught:
        await found.next_step(PLACE, wait_s=1.0)

    assert caught.value.reason.value == "network_fault"
    assert "error" in asked.reply[0]


async def test_the_markets_word_ends_the_rounds(tmp_path: Path) -> None:
    found = rounds(tmp_path, replace_node(STEP, "17"), DONE)
    clock = found._clock
    assert isinstance(clock, FakeClock)

    async with anyio.create_task_group() as group:
        group.start_soon(found._follow)
        assert await advance_until_step(found, clock) == DONE
        group.cancel_scope.cancel()

    assert found._market.known == ["", "17"]  # type: ignore[attr-defined]


async def test_a_market_that_is_away_is_asked_again_and_a_lost_lease_ends_the_rounds(tmp_path: Path) -> None:
    found = rounds(tmp_path, Unreachable("away"), TaskCancelled("gone"))
    clock = found._clock
    assert isinstance(clock, FakeClock)

    async with anyio.create_task_group() as group:
        group.start_soon(found._follow)
        with pytest.raises(TaskCancelled, match="gone"):
            await advance_until_step(found, clock)
        group.cancel_scope.cancel()


def replace_node(step: RoundStep, node_id: str) -> RoundStep:
    return step.model_copy(update={"state": "wait", "flower_node": node_id})


async def advance_until_step(found: FlowerRounds, clock: FakeClock) -> RoundStep:
    steps: list[RoundStep] = []
    errors: list[ParityError] = []
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                try:
                    steps.append(await found.next_step(PLACE, wait_s=1.0))
                except ParityError as exc:
                    errors.append(exc)
                group.cancel_scope.cancel()

            group.start_soon(ask)
            while True:
                await anyio.lowlevel.checkpoint()
                await clock.advance(timedelta(seconds=1))
    if errors:
        raise errors[0]
    return steps[0]


@pytest.mark.parametrize(
    ("host", "market", "found"),
    [
        ("fl.example.org", "market.example.org", "8.8.8.8"),
        ("market.example.org", "Market.example.org", "market.example.org"),
        ("127.0.0.1", "localhost", "127.0.0.1"),
        ("10.0.0.7", "10.0.0.7", "10.0.0.7"),
    ],
)
async def test_a_superlink_is_at_the_markets_own_host_or_at_a_public_address(
    host: str, market: str, found: str
) -> None:
    async def resolver(_host: str, _port: int) -> list[str]:
        return ["8.8.8.8"]

    assert await superlink_address(host, 9400, market_host=market, resolver=resolver) == found


@pytest.mark.parametrize("host", ["10.0.0.7", "127.0.0.1", "169.254.169.254", "router.example.org"])
async def test_a_manifest_cannot_make_a_node_knock_on_its_operators_doors(host: str) -> None:
    async def resolver(_host: str, _port: int) -> list[str]:
        return ["192.168.1.1"]

    with pytest.raises(PolicyDenied, match="not a public address"):
        await superlink_address(host, 9400, market_host="market.example.org", resolver=resolver)


# -- the process ----------------------------------------------------------------------------------------------------


def test_each_lease_has_a_key_of_its_own_that_nobody_else_reads(tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        made.append(make_super_node(tmp_path / name, FLEET, LIMITS))

    assert made[0].public_key != made[1].public_key
    assert all(len(bytes.fromhex(one.public_key)) == 49 for one in made)
    assert all((one.folder / "node.key").stat().st_mode & 0o077 == 0 for one in made)
    assert (made[0].folder / "root.pem").read_text() == PEM
    for one in made:
        one.remove()
        one.remove()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(flower_process, "flower_python", lambda: Path("/opt/flower/bin/python"))
    monkeypatch.setattr(flower_process, "_free_port", lambda: 5)
    return node(tmp_path)


def test_in_a_sandbox_it_has_no_network_and_one_way_out(command: SuperNode) -> None:
    argv, env = replace(command, bwrap=Path("/usr/bin/bwrap")).command()
    words = " ".join(argv)

    assert argv[0] == "/usr/bin/bwrap"
    assert "--unshare-all" in argv
    assert "--share-net" not in argv
    assert argv[argv.index("--cap-drop") : argv.index("--cap-drop") + 2] == ["--cap-drop", "ALL"]
    assert "unix:/sockets/link.sock" in argv
    assert "fl.example.org" not in words
    assert "--bind / " not in words
    assert str(Path.home()) not in words.split(" -- ")[0].replace(str(command.folder), "")
    assert env["HOME"] == "/flower"


def test_without_a_sandbox_it_talks_to_the_named_superlink(command: SuperNode) -> None:
    argv, env = command.command()

    assert argv[0] == "/opt/flower/bin/python"
    assert "fl.example.org:9400" in argv
    assert FLEET.bundle_sha256 in argv
    assert argv[-2:] == [str((1 << 28) + (1 << 30)), "31"]
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"


def test_without_flower_the_part_goes_to_another_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_ENGINES", str(tmp_path))

    with pytest.raises(ExecutionFailed, match="parity fl engine install flower") as caught:
        node(tmp_path).command()

    assert caught.value.reason.value == "executor_unavailable"
