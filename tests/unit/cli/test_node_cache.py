"""``parity node cache``, without an agent and with one that answers on its socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from parity_blobs.testing import deterministic_bytes
from parity_client import Home
from parity_node.cache.opening import AGENT_LOCK, idle_cache
from parity_node.lockfile import exclusive_lock
from parity_node.settings import load_settings
from parity_protocol.clock import SystemClock

if TYPE_CHECKING:
    from .conftest import Parity
else:
    Parity = Any

SIZE = 100_000


@pytest.fixture
def kept(home: Home) -> list[str]:
    """A node's folder with three data sets and an image; return their names, images last."""
    state = home.path / "node"
    for folder in ("cache", "results"):
        (state / folder).mkdir(parents=True, mode=0o700)
    now = SystemClock().now().timestamp()
    image = {"id": "sha256:" + "a" * 64, "reference": "debian:12", "size_bytes": 5 << 20, "used_at": now}
    (state / "cache" / "images.json").write_text(json.dumps({"images": [image], "expected": {}}))

    async def fill() -> list[str]:
        async with idle_cache(load_settings(runner_state_dir=state)) as cache:
            store = await cache.data.store()
            return [str(await store.put_bytes(deterministic_bytes(number, SIZE))) for number in range(3)]

    return [*anyio.run(fill), "debian:12"]


def names(document: Any) -> list[str]:
    return [item["label"] if item["kind"] == "image" else item["name"] for item in document["items"]]


def test_list_without_an_agent_shows_everything_and_the_caps(parity: Parity, kept: list[str]) -> None:
    done = parity("node", "cache", "list", "--json")
    screen = parity("node", "cache", "list")

    assert (done.code, screen.code) == (0, 0)
    assert names(done.json) == kept
    assert {item["used_at"][-1] for item in done.json["items"]} == {"Z"}
    assert done.json["totals"]["data"]["limit"] == 4 << 30
    assert done.json["totals"]["image"]["used"] == 5 << 20
    assert "debian:12" in screen.out
    assert "RUNNER_RESULT_MAX_BYTES" in screen.out


def test_pinned_data_outlives_a_collection_of_everything(parity: Parity, kept: list[str]) -> None:
    assert parity("node", "cache", "pin", kept[1]).code == 0

    planned = parity("node", "cache", "gc", "--all", "--dry-run", "--json")
    freed = parity("node", "cache", "gc", "--all", "--json")

    # Images stay: without an agent no engine is asked.
    assert names(planned.json) == names(freed.json) == [kept[0], kept[2]]
    assert freed.json["freed_bytes"] >= 2 * SIZE
    assert names(parity("node", "cache", "list", "--json").json) == [kept[1], "debian:12"]
    assert parity("node", "cache", "unpin", kept[1]).code == 0
    assert names(parity("node", "cache", "gc", "--all", "--json").json) == [kept[1]]


def test_gc_prints_what_it_frees_and_spares_the_young(parity: Parity, kept: list[str]) -> None:
    young = parity("node", "cache", "gc", "--older-than", "1h")
    told = parity("node", "cache", "gc", "--all", "--dry-run")

    assert young.out.strip() == "0 B freed"
    assert told.out.count("would free ") == len(kept) - 1  # without an agent no engine is asked
    assert told.out.splitlines()[-1].endswith("would be freed")


def test_long_names_of_images_leave_room_for_the_other_columns(parity: Parity, home: Home, kept: list[str]) -> None:
    ledger = home.path / "node" / "cache" / "images.json"
    document = json.loads(ledger.read_text())
    for number, name in enumerate(
        ("parity/" + "b" * 64 + ":latest", "registry.example:5000/tools/line@sha256:" + "c" * 64)
    ):
        document["images"].append(document["images"][0] | {"id": "sha256:" + f"{number}f" * 32, "reference": name})
    ledger.write_text(json.dumps(document))

    lines = parity("node", "cache", "list").out.splitlines()

    assert lines[0].split() == ["kind", "name", "size", "last", "used"]
    images = [line for line in lines if line.startswith("image ") and "5.0 MiB" in line and "ago" in line]
    assert len(images) == 3
    assert ("an archive  0f0f0f0f0f0f" in images[1], "c" * 13 in images[2]) == (True, False)


def test_image_can_be_pinned_by_its_reference_or_the_beginning_of_its_id(parity: Parity, kept: list[str]) -> None:
    assert parity("node", "cache", "pin", kept[-1]).code == 0
    pinned = [item["pinned"] for item in parity("node", "cache", "list", "--json").json["items"]]
    assert parity("node", "cache", "unpin", "a" * 12).code == 0

    assert pinned == [False, False, False, True]
    assert not any(item["pinned"] for item in parity("node", "cache", "list", "--json").json["items"])


def test_pin_of_what_is_not_here_says_so(parity: Parity, kept: list[str]) -> None:
    done = parity("node", "cache", "pin", "nothing:1")

    assert done.code != 0
    assert "nothing:1" in done.err
    assert kept


def test_machine_without_a_node_says_how_to_get_one(parity: Parity) -> None:
    done = parity("node", "cache", "list")

    assert done.code != 0
    assert "parity node init" in done.err


def test_node_that_starts_or_hangs_is_not_touched(parity: Parity, kept: list[str], home: Home) -> None:
    with exclusive_lock(home.path / "node" / AGENT_LOCK):
        done = parity("node", "cache", "gc", "--all")

    assert done.code != 0
    assert "already running here (pid" in done.err
    assert names(parity("node", "cache", "list", "--json").json) == kept


class Agent:
    """The socket of a running agent that says yes."""

    def __init__(self, state: Path) -> None:
        self.asked: list[dict[str, Any]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        path = state / "s"
        self._listener.bind(str(path))
        self._listener.listen()
        (state / "control.json").write_text(json.dumps({"pid": 1, "socket": str(path)}))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            with link:
                self.asked.append(json.loads(link.makefile().readline()))
                link.sendall(b'{"ok": true, "items": [], "not_listed": 0, "freed_bytes": 0, "dry_run": false}\n')

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def agent(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    state = home.path / "node"
    state.mkdir(parents=True)
    found = Agent(state)
    yield found
    found.close()


def test_running_agent_does_it_itself(parity: Parity, agent: Agent, home: Home) -> None:
    done = parity("node", "cache", "gc", "--all", "--older-than", "2d", "--json")

    assert done.code == 0
    assert agent.asked == [
        {"command": "cache", "action": "gc", "all": True, "dry_run": False, "older_than_s": 172_800.0}
    ]
    assert "ok" not in done.json
    assert not (home.path / "node" / "cache").exists()
