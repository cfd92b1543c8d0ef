"""Room that is promised to a claim stays promised until its execution counts itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio
from anyio.lowlevel import checkpoint

from parity_node.acquire import Acquirer, Answer, Granted
from parity_node.admission import Committed
from parity_protocol.task import parse_spec

SPEC = parse_spec('{"type":"command","command":["true"],"resources":{"memory_bytes":67108864}}')
MEMORY = 64 << 20


class Claims(Acquirer):
    """Admits and claims everything, and notes what was counted as used when an offer was looked at."""

    def __init__(self) -> None:
        self._under_way = Committed()
        self.running = Committed()
        self.counted: list[int] = []

    def _committed(self) -> Committed:  # type: ignore[override]
        return self.running

    async def _check(self, token: str, committed: Committed, *, is_early: bool = False) -> Any:
        self.counted.append(committed.memory_bytes)
        return SimpleNamespace(spec=SPEC)

    async def _take(self, wanted: Any, ahead: int) -> tuple[list[Granted], tuple[str, ...]]:
        return [cast("Granted", SimpleNamespace(work=SimpleNamespace(spec=one.spec))) for one in wanted], ()


def ignored(_: Answer) -> None:
    """What came of the offers."""


async def test_a_lease_that_waits_for_its_slot_keeps_its_room() -> None:
    claims, slot = Claims(), anyio.Event()

    async def begin(_: Granted) -> None:
        await slot.wait()
        claims.running += Committed(MEMORY)

    async with anyio.create_task_group() as group:
        group.start_soon(claims.take, ("a",), ignored, begin)
        await checkpoint()
        await checkpoint()
        group.start_soon(claims.take, ("b",), ignored, begin)
        await checkpoint()
        await checkpoint()
        slot.set()
    await claims.take(("c",), ignored, begin)

    assert claims.counted == [0, MEMORY, 2 * MEMORY]


async def test_room_of_what_was_not_begun_is_given_back() -> None:
    claims = Claims()

    async def begin(_: Granted) -> None:
        await anyio.sleep_forever()

    with anyio.move_on_after(0.01):
        await claims.take(("a", "b"), ignored, begin)
    with anyio.move_on_after(0.01):
        await claims.take(("c",), ignored, begin)

    assert claims.counted == [0, MEMORY, 0]
