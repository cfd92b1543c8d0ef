"""The real SuperLink and SuperNode under our programs: what they refuse, and what passes between them.

Everything is on loopback, as it is without the internet: telemetry, update checks and installing are off.
"""

from __future__ import annotations

import asyncio
import ssl
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from parity_fl.engines.flower import Fleet, bundle
from parity_market.flower import Fleets, make_certificates, public_key_of
from parity_market.flower.bridge import Body, serve_bridge
from parity_market.flower.processes import Control, Processes
from parity_node.executors.base import Limits
from parity_node.executors.flower import FlowerRounds
from parity_node.executors.flower_process import SuperNode, make_super_node
from parity_node.executors.rounds import Place
from parity_protocol.api.rounds import RoundStep, UpdateTaken
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ExecutionFailed, ParityError

pytestmark = [pytest.mark.serial, pytest.mark.service("flower"), pytest.mark.timeout(200)]

MODEL = b"m" * 5_000
UPDATE = b"u" * 3_000
PLACE = Place("session", 0, "lease", 1)
CLOCK = SystemClock()


@dataclass
class Session:
    """The market's side, scripted: one round for one registered node. Implements ``bridge.Carried``."""

    node_id: str = ""
    came: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self) -> dict[str, Any]:
        if not self.node_id or self.came:
            return {"state": "wait"}
        step = RoundStep(
            state="train", round=1, phase=0, total_rounds=1, base=sha256(MODEL).hexdigest(), base_size=len(MODEL)
        )
        node = {"part": 0, "fence": 1, "node_id": self.node_id, "step": step.model_dump_json()}
        return {"state": "train", "round": 1, "phase": 0, "base": step.base, "nodes": [node]}

    async def model(self, base: str) -> bytes:
        assert base == sha256(MODEL).hexdigest()
        return MODEL

    async def update(self, asked: Mapping[str, Any], body: Body) -> None:
        self.came.append((dict(asked), b"".join([piece async for piece in body])))
        self.changed.set()

    async def failed(self, asked: Mapping[str, Any]) -> None:
        self.failures.append(str(asked["reason"]))


class AlwaysRegistered:
    """The node's market: the key is registered, the session is never done."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id

    async def flower_step(self, place: Place, *, key: str, known: str, wait_s: float) -> RoundStep:
        if known == self.node_id:
            await anyio.sleep(wait_s)
        return RoundStep(state="wait", round=1, phase=0, total_rounds=1, flower_node=self.node_id)


@dataclass
class SuperLink:
    fleet: Fleet
    control: Control
    session: Session


@pytest.fixture(autouse=True)
def engines(service_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_ENGINES", str(service_path("flower")))


@asynccontextmanager
async def super_link(folder: Path, *, sends: bytes | None = None) -> AsyncIterator[SuperLink]:
    fleets, session = Fleets(folder / "market", CLOCK), Session()
    fleet = await fleets.prepare("session")
    own = fleets.folder("session")
    if sends is not None:
        (own / "bundle.fab").write_bytes(sends)
    async with serve_bridge(own, session) as bridge, Processes(own) as processes:
        await processes.start("superlink", [str(own / "control.secret"), "127.0.0.1", str(fleet.port), str(own)])
        control = Control(await processes.start("control", [str(own), str(fleet.port)], talks=True))
        await control.ask({"do": "start", "bridge": str(bridge.path)})
        yield SuperLink(fleet, control, session)


async def registered(link: SuperLink, node: SuperNode) -> str:
    answer = await link.control.ask({"do": "register", "key": public_key_of(node.public_key)})
    return str(answer["node_id"])


def made_node(folder: Path, fleet: Fleet) -> SuperNode:
    folder.mkdir()
    return make_super_node(folder, fleet, Limits(600.0, 1.0, 256 << 20, 1 << 30, 64))


async def train_one_round(rounds: FlowerRounds, folder: Path) -> RoundStep:
    """Be the trainer for one question."""
    step = await rounds.next_step(PLACE, wait_s=60.0)
    await rounds.model(PLACE, step, folder / "model", max_bytes=len(MODEL))
    assert await anyio.Path(folder / "model").read_bytes() == MODEL
    taken: UpdateTaken = await rounds.send(
        PLACE, step, UPDATE, {"loss": 0.5, "samples": 7.0}, digest=sha256(UPDATE).digest()
    )
    assert taken.size == len(UPDATE)
    return step


@pytest.mark.parametrize("is_sandboxed", [True, False])
async def test_a_round_goes_down_and_its_update_comes_up(tmp_path: Path, is_sandboxed: bool) -> None:
    async with super_link(tmp_path) as link:
        node = made_node(tmp_path / "exec", link.fleet)
        node = node if is_sandboxed else replace(node, bwrap=None)
        link.session.node_id = await registered(link, node)
        rounds = FlowerRounds(AlwaysRegistered(link.session.node_id), PLACE, node, clock=CLOCK, market_host="127.0.0.1")  # type: ignore[arg-type]
        steps: list[RoundStep] = []

        async def take_part() -> None:
            steps.append(await train_one_round(rounds, tmp_path))
            await link.session.changed.wait()

        await rounds.around(take_part)
        rounds.close()

    [(asked, body)] = link.session.came
    assert body == UPDATE
    assert (asked["round"], asked["part"], asked["fence"]) == (1, 0, 1)
    assert asked["metrics"]["loss"] == 0.5
    assert steps[0].base == sha256(MODEL).hexdigest()


async def test_another_bundle_is_refused_before_anything_of_it_runs(tmp_path: Path) -> None:
    async with super_link(tmp_path, sends=_changed_bundle()) as link:
        node = made_node(tmp_path / "exec", link.fleet)
        link.session.node_id = await registered(link, node)
        rounds = FlowerRounds(AlwaysRegistered(link.session.node_id), PLACE, node, clock=CLOCK, market_host="127.0.0.1")  # type: ignore[arg-type]
        found: list[ParityError] = []

        async def take_part() -> None:
            with pytest.raises(ExecutionFailed) as caught:
                await rounds.next_step(PLACE, wait_s=60.0)
            found.append(caught.value)

        await rounds.around(take_part)
        rounds.close()

    assert "refused: the SuperLink sent the bundle" in found[0].message
    assert link.session.came == []
    assert not list((tmp_path / "exec").rglob("parity_flower"))  # nothing was unpacked


async def test_a_key_that_nobody_registered_gets_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity_node.executors.flower.MAX_STARTS", 1)
    async with super_link(tmp_path) as link:
        node = made_node(tmp_path / "exec", link.fleet)
        rounds = FlowerRounds(AlwaysRegistered("17"), PLACE, node, clock=CLOCK, market_host="127.0.0.1")  # type: ignore[arg-type]
        link.session.node_id = "17"
        found: list[str] = []

        async def take_part() -> None:
            with pytest.raises(ExecutionFailed) as caught:
                await rounds.next_step(PLACE, wait_s=60.0)
            found.append(caught.value.message)

        await rounds.around(take_part)
        rounds.close()

    assert "Failed to initialize the connection" in found[0]
    assert link.session.came == []


async def test_a_superlink_with_another_root_is_not_talked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity_node.executors.flower.MAX_STARTS", 1)
    async with super_link(tmp_path) as link:
        impostor = make_certificates("127.0.0.1", "session", now=CLOCK.now()).root
        node = made_node(tmp_path / "exec", replace(link.fleet, root_ca_pem=impostor))
        link.session.node_id = await registered(link, node)
        rounds = FlowerRounds(AlwaysRegistered(link.session.node_id), PLACE, node, clock=CLOCK, market_host="127.0.0.1")  # type: ignore[arg-type]
        found: list[str] = []

        async def take_part() -> None:
            with pytest.raises(ExecutionFailed) as caught:
                await rounds.next_step(PLACE, wait_s=60.0)
            found.append(caught.value.message)

        await rounds.around(take_part)
        rounds.close()

    assert "CERTIFICATE_VERIFY_FAILED" in found[0]
    assert link.session.came == []


async def test_strangers_reach_the_fleet_and_nothing_else(tmp_path: Path) -> None:
    async with super_link(tmp_path) as link:
        context = ssl.create_default_context(cadata=link.fleet.root_ca_pem)
        async with httpx.AsyncClient(base_url=f"https://{link.fleet.superlink}", verify=context) as stranger:

            async def status(path: str, **headers: str) -> int:
                head = {"content-type": "application/protobuf", "accept": "application/protobuf", **headers}
                return (await stranger.post(path, content=b"", headers=head)).status_code

            assert await status("/v1/control/list-runs") == 404
            assert await status("/v1/control/start-run", **{"x-parity-control": "0" * 64}) == 404
            assert await status("/docs") == 404
            assert await status("/openapi.json") == 404
            assert await status("/v1/fleet/pull-messages") in (400, 401)
            assert await status("/v1/runtime/acquire-task") in (400, 401, 403)


def _changed_bundle() -> bytes:
    """Return a bundle whose own listing is right, so that only its hash gives it away."""
    target = BytesIO()
    with zipfile.ZipFile(BytesIO(bundle())) as old, zipfile.ZipFile(target, "w") as new:
        files = {name: old.read(name) for name in old.namelist() if name != ".info/CONTENT"}
        files["parity_flower/client.py"] += b"\nprint('mine')\n"
        listing = "\n".join(f"{name},{sha256(data).hexdigest()},{8 * len(data)}" for name, data in files.items())
        for name, data in {**files, ".info/CONTENT": listing.encode()}.items():
            new.writestr(name, data)
    return target.getvalue()
