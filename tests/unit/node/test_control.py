"""The control socket: who may talk to it, what it answers, and what it refuses."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from parity_node.control import MAX_REQUEST_BYTES, POINTER_FILE, ask_agent, serve_control
from parity_protocol.errors import BadDocument, BadField, NotFound, Unreachable


async def echo(request: Mapping[str, Any]) -> Mapping[str, Any]:
    if request.get("command") == "missing":
        raise NotFound("no such task")
    if request.get("command") == "bad":
        raise BadField("not that")
    return {"heard": request.get("command")}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Path]:
    async with anyio.create_task_group() as group:
        group.start_soon(serve_control, tmp_path, echo)
        while not (tmp_path / POINTER_FILE).exists():  # noqa: ASYNC110 - the file is what a client waits for
            await anyio.sleep(0.001)
        yield tmp_path
        group.cancel_scope.cancel()


async def ask(folder: Path, **request: Any) -> dict[str, Any]:
    return await anyio.to_thread.run_sync(lambda: ask_agent(folder, request))


async def test_question_gets_its_answer(served: Path) -> None:
    assert await ask(served, command="status") == {"ok": True, "heard": "status"}


async def test_refusals_keep_their_kind(served: Path) -> None:
    with pytest.raises(NotFound, match="no such task"):
        await ask(served, command="missing")
    with pytest.raises(BadDocument, match="not that"):
        await ask(served, command="bad")


async def test_socket_is_for_its_owner_alone(served: Path) -> None:
    pointer = json.loads((served / POINTER_FILE).read_bytes())

    assert (await anyio.Path(pointer["socket"]).stat()).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("line", [b"not json\n", b"[]\n", b'{"a":1,"a":2}\n', b"x" * (MAX_REQUEST_BYTES + 1)])
async def test_anything_but_a_short_object_is_refused(served: Path, line: bytes) -> None:
    def talk() -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(json.loads((served / POINTER_FILE).read_bytes())["socket"])
            link.sendall(line)
            answer: dict[str, Any] = json.loads(link.recv(65_536))
            return answer

    assert not (await anyio.to_thread.run_sync(talk))["ok"]
    assert (await ask(served, command="still there"))["heard"] == "still there"


async def test_long_path_of_a_state_folder_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 60) / ("e" * 60)
    folder.mkdir(parents=True)

    async with anyio.create_task_group() as group:
        group.start_soon(serve_control, folder, echo)
        while not (folder / POINTER_FILE).exists():  # noqa: ASYNC110 - the file is what a client waits for
            await anyio.sleep(0.001)
        answer = await ask(folder, command="status")
        group.cancel_scope.cancel()

    assert answer["heard"] == "status"


def test_absent_agent_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no agent answers"):
        ask_agent(tmp_path, {"command": "status"})
