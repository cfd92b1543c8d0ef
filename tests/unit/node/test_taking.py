"""The loop that takes work: what overlaps, what a stop interrupts, and what it never does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint

from parity_node.acquire import Acquirer, Answer, Granted
from parity_node.presence import Presence
from parity_node.slots import Slots
from parity_node.taking import CRAMPED_PAUSE_S, HAND_BACK_S, Taker
from parity_node.waiting import Comeback, Signal
from parity_protocol.errors import FailureReason, StorageFull
from parity_protocol.testing.clock import FakeClock


class Acquiring:
    """Offers what the test puts in; a claim is answered when the test says so."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.waiting: list[tuple[str, ...]] = []
        self.failure: Exception | None = None
        self.answer = anyio.Event()
        self.taken: list[str] = []
        self.ahead: tuple[str, ...] = ()  # what the next claim's answer brings
        self.asked_ahead: list[int] = []
        self.early: list[int] = []
        self.is_cramped = False  # whether early offers have no room beside what runs
        self.handed_back: list[tuple[str, FailureReason]] = []
        self._arrived = anyio.Event()

    def offer(self, *names: str) -> None:
        self.waiting.append(names)
        self._arrived.set()

    async def poll(self, slots: int) -> tuple[str, ...]:
        self.asked.append(slots)
        while not self.waiting:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self.waiting.pop(0)

    async def take(
        self,
        offers: tuple[str, ...],
        answered: Callable[[Answer], None],
        hand_over: Callable[[Granted], Awaitable[FailureReason | None]],
        *,
        ahead: int,
        early: int,
    ) -> None:
        self.asked_ahead.append(ahead)
        self.early.append(early)
        await self.answer.wait()
        if self.failure is not None:
            raise self.failure
        if self.is_cramped and early:
            answered(Answer(0, is_cramped=True))
            return
        self.taken += offers
        brought, self.ahead = self.ahead, ()
        answered(Answer(len(offers), brought))
        for name in offers:
            reason = await hand_over(cast("Granted", name))
            if reason is not None:
                self.handed_back.append((name, reason))


class World:
    def __init__(self, slots: int = 4) -> None:
        self.acquiring = Acquiring()
        self.slots = Slots(slots)
        self.clock = FakeClock()
        self.begun: list[tuple[str, int]] = []
        self.obstacle = ""
        self.taker = Taker(
            acquirer=cast("Acquirer", self.acquiring),
            presence=cast("Presence", self),
            slots=self.slots,
            clock=self.clock,
            comeback=Comeback(),
            market_back=Signal(),
            obstacle=lambda: self.obstacle,
            room=lambda: 100,
            measure=lambda: None,
            begin=lambda lease: self.begun.append((cast("Any", lease), self.slots.take())),
        )

    async def wait_eligible(self) -> None:
        await checkpoint()

    def doubt(self) -> None:
        raise AssertionError("nothing here doubts the market")


@asynccontextmanager
async def running(world: World) -> AsyncIterator[None]:
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(world.taker.run)
            await settle()
            yield
            world.acquiring.answer.set()
            world.taker.stop()


async def settle() -> None:
    for _ in range(30):
        await checkpoint()


async def test_the_next_poll_does_not_wait_for_a_claim_on_its_way() -> None:
    world = World(slots=4)
    async with running(world):
        world.acquiring.offer("a")
        await settle()
        await world.clock.advance(timedelta(seconds=0.01))
        await settle()
        assert world.acquiring.asked == [4, 3]
        assert world.begun == []
        world.acquiring.offer("b", "c")
        await settle()
        world.acquiring.answer.set()
        await settle()
        assert world.begun == [("a", 0), ("b", 1), ("c", 2)]


async def test_nothing_is_asked_for_while_every_slot_is_spoken_for() -> None:
    world = World(slots=2)
    async with running(world):
        world.acquiring.offer("a", "b")
        await settle()
        assert world.acquiring.asked == [2]


async def test_the_next_task_begins_while_the_result_of_the_last_one_is_made_durable() -> None:
    world = World(slots=1)
    async with running(world):
        world.acquiring.answer.set()
        world.acquiring.offer("a")
        await settle()
        world.acquiring.offer("b")
        await settle()
        assert world.begun == [("a", 0)]
        world.slots.end(0)
        await settle()
        await world.clock.advance(timedelta(seconds=0.01))
        await settle()
        assert world.acquiring.taken == ["a", "b"]
        assert world.begun == [("a", 0), ("b", 1)]
        world.acquiring.offer("c")
        world.slots.end(1)
        await settle()
        await world.clock.advance(timedelta(seconds=0.01))
        await settle()
        assert len(world.begun) == 2  # two results are on their way: that is room enough
        world.slots.release(0)
        await world.clock.advance(timedelta(seconds=0.01))
        await settle()
        assert world.begun == [("a", 0), ("b", 1), ("c", 0)]


async def test_a_stop_ends_the_waiting_and_not_a_claim_on_its_way() -> None:
    world = World(slots=2)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(world.taker.run)
            world.acquiring.offer("a")
            await settle()
            world.taker.stop()
            await settle()
            assert world.begun == []
            world.acquiring.answer.set()
    assert world.begun == [("a", 0)]


async def test_a_failed_claim_frees_its_slots_and_is_tried_again_after_a_pause() -> None:
    world = World(slots=1)
    world.acquiring.failure = StorageFull("no room")
    async with running(world):
        world.acquiring.answer.set()
        world.acquiring.offer("a")
        await settle()
        assert world.slots.open == 1
        world.acquiring.failure = None
        world.acquiring.offer("a")
        await world.clock.advance(timedelta(seconds=1.0))
        await settle()
        await world.clock.advance(timedelta(seconds=1.0))
        await settle()
        assert world.begun == [("a", 0)]


@pytest.mark.parametrize("obstacle", ["the disk is full"])
async def test_an_obstacle_stops_the_asking_until_it_is_gone(obstacle: str) -> None:
    world = World()
    world.obstacle = obstacle
    async with running(world):
        assert world.acquiring.asked == []
        world.obstacle = ""
        await world.clock.advance(timedelta(seconds=1.0))
        await settle()
        assert world.acquiring.asked == [4]


def brisk(world: World) -> None:
    for _ in range(world.slots.count):
        world.taker.note_end(0.01)


def empty(world: World) -> None:
    for slot in range(world.slots.count):
        world.slots.release(slot)


async def filled(world: World, *names: str, ahead: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> None:
    """Let tasks that are short fill the slots; the claims' answer brings ``ahead``, the next one ``after``."""
    brisk(world)
    world.acquiring.ahead = ahead
    world.acquiring.offer(*(names or ("a", "b")))
    await settle()
    answer, world.acquiring.answer = world.acquiring.answer, anyio.Event()
    answer.set()
    await settle()
    world.acquiring.ahead = after
    world.acquiring.answer.set()
    await settle()


async def test_while_tasks_are_short_a_claim_brings_the_next_offers_which_are_claimed_before_there_are_slots() -> None:
    world = World(slots=2)
    async with running(world):
        await filled(world, ahead=("c", "d"))
        assert world.acquiring.taken == ["a", "b", "c", "d"]
        assert world.begun == [("a", 0), ("b", 1)]
        world.slots.release(1)
        world.slots.release(0)
        await settle()
        assert world.begun[2:] == [("c", 0), ("d", 1)]
        assert world.acquiring.asked == [2]  # nothing more was polled for
        assert world.acquiring.asked_ahead == [4, 4]
        assert world.acquiring.early == [0, 2]


async def test_no_more_leases_than_there_are_slots_wait_for_one() -> None:
    world = World(slots=2)
    async with running(world):
        await filled(world, ahead=("c", "d"), after=("e", "f"))
        assert world.acquiring.taken == ["a", "b", "c", "d"]
        world.slots.release(0)
        await settle()
        assert world.acquiring.taken == ["a", "b", "c", "d"]  # one more is not worth a message
        world.slots.release(1)
        await settle()
        assert world.acquiring.taken == ["a", "b", "c", "d", "e", "f"]
        assert world.begun == [("a", 0), ("b", 1), ("c", 0), ("d", 1)]


async def test_what_is_asked_for_ahead_and_on_its_way_is_twice_the_slots_at_most() -> None:
    world = World(slots=4)
    async with running(world):
        brisk(world)
        for names in (("a", "b", "c"), ("d",)):
            world.acquiring.offer(*names)
            await settle()
            await world.clock.advance(timedelta(seconds=0.01))
            await settle()
        assert world.acquiring.asked_ahead == [6, 2]


async def test_early_claims_share_a_message() -> None:
    world = World(slots=4)
    async with running(world):
        await filled(world, "a", "b", "c", "d", ahead=("e",))
        assert world.acquiring.taken == ["a", "b", "c", "d"]
        world.slots.release(2)
        await settle()
        await world.clock.advance(timedelta(seconds=0.01))
        await settle()
        assert world.acquiring.taken == ["a", "b", "c", "d", "e"]  # now there is a slot for it
        assert world.acquiring.early == [0, 0]


async def test_an_early_lease_that_finds_no_slot_goes_back_and_short_tasks_must_prove_themselves_again() -> None:
    world = World(slots=2)
    async with running(world):
        await filled(world, ahead=("c", "d"), after=("e", "f"))
        await world.clock.advance(timedelta(seconds=HAND_BACK_S - 0.01))
        await settle()
        assert world.acquiring.handed_back == []
        await world.clock.advance(timedelta(seconds=0.02))
        await settle()
        assert world.acquiring.handed_back == [(name, FailureReason.INTERRUPTED) for name in ("c", "d")]

        world.slots.release(0)
        world.acquiring.offer("g")
        await settle()
        await world.clock.advance(timedelta(seconds=0.01))
        await settle()

        assert world.begun[2:] == [("g", 0)]
        assert world.acquiring.asked_ahead == [4, 4, 0]
        brisk(world)
        world.acquiring.offer("h")
        world.slots.release(1)
        await settle()
        await world.clock.advance(timedelta(seconds=0.01))
        await settle()
        assert world.acquiring.asked_ahead[3:] == [2]


async def test_a_stop_gives_back_what_waits_for_a_slot_at_once() -> None:
    world = World(slots=2)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(world.taker.run)
            await settle()
            await filled(world, ahead=("c", "d"))
            world.taker.stop()
    assert world.acquiring.handed_back == [(name, FailureReason.DRAINED) for name in ("c", "d")]
    assert world.begun == [("a", 0), ("b", 1)]
    assert world.slots.reserved == 0
    assert world.clock.monotonic() == 0


async def test_where_early_work_has_no_room_none_is_claimed_for_a_while() -> None:
    world = World(slots=2)
    async with running(world):
        world.acquiring.is_cramped = True
        await filled(world, ahead=("c", "d"))
        assert world.acquiring.early == [0, 2]
        assert world.acquiring.taken == ["a", "b"]
        empty(world)

        await filled(world, "e", "f", ahead=("g", "h"))
        assert world.acquiring.early == [0, 2, 0]
        await world.clock.advance(timedelta(seconds=CRAMPED_PAUSE_S))
        empty(world)

        await filled(world, "i", "j", ahead=("k", "l"))
        assert world.acquiring.early == [0, 2, 0, 0, 2]


async def test_offers_that_came_ahead_are_left_to_others_after_a_moment() -> None:
    world = World(slots=1)
    async with running(world):
        await filled(world, "a", ahead=("b",), after=("c",))
        assert world.acquiring.taken == ["a", "b"]
        await world.clock.advance(timedelta(seconds=0.2))
        world.slots.release(0)
        await settle()
        world.slots.release(0)
        await settle()
        assert world.acquiring.taken == ["a", "b"]
        assert world.acquiring.asked == [1, 1]


@pytest.mark.parametrize("lasted", [[], [0.01], [0.01, 0.5]])
async def test_a_node_with_long_tasks_asks_for_nothing_ahead(lasted: list[float]) -> None:
    world = World(slots=2)
    async with running(world):
        for seconds in lasted:
            world.taker.note_end(seconds)
        world.acquiring.offer("a")
        await settle()
        assert world.acquiring.asked_ahead == [0]
