"""Waiting and supervising: with the system's clock and with a fake one alike."""

from __future__ import annotations

import random
from datetime import timedelta

import anyio
import anyio.lowlevel
import pytest

from parity_node.slots import Slots
from parity_node.supervise import supervise
from parity_node.waiting import Backoff, Signal, event_within, within
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import NodeInUse, Overloaded, Unreachable
from parity_protocol.testing.clock import FakeClock


class Ticking(FakeClock):
    """Passes its own time: whoever sleeps longest is woken when nothing else happens."""

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(0.001)
        self._elapsed += seconds


@pytest.fixture(params=["system", "fake"])
def any_clock(request: pytest.FixtureRequest) -> Clock:
    return SystemClock() if request.param == "system" else Ticking()


async def test_call_that_is_quick_enough_returns_its_value(any_clock: Clock) -> None:
    async def call() -> int:
        return 7

    assert await within(any_clock, 5.0, call) == 7


async def test_call_that_takes_too_long_is_cancelled(any_clock: Clock) -> None:
    with pytest.raises(TimeoutError):
        await within(any_clock, 0.01, anyio.sleep_forever)


async def test_error_of_a_call_comes_out_as_it_is(any_clock: Clock) -> None:
    async def call() -> None:
        raise Unreachable("gone")

    with pytest.raises(Unreachable, match="gone"):
        await within(any_clock, 5.0, call)


async def test_event_is_awaited_no_longer_than_asked(any_clock: Clock) -> None:
    event = anyio.Event()

    assert not await event_within(event, any_clock, 0.01)
    event.set()
    assert await event_within(event, any_clock, 0.01)


async def test_signal_that_was_set_before_the_wait_is_not_lost(any_clock: Clock) -> None:
    signal = Signal()
    signal.set()

    assert await signal.wait_within(any_clock, 0.01)
    assert not await signal.wait_within(any_clock, 0.01)


def test_backoff_doubles_is_capped_and_starts_again() -> None:
    class Highest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    backoff = Backoff(1.0, 10.0, rng=Highest())

    assert [backoff.after() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert backoff.after() == 1


def test_backoff_spreads_over_its_whole_width() -> None:
    waits = []
    for seed in range(1_000):
        backoff = Backoff(10.0, 10.0, rng=random.Random(seed))
        waits.append(backoff.after())

    assert min(waits) < 0.5
    assert max(waits) > 9.5


def test_retry_after_is_the_least_wait() -> None:
    assert Backoff(1.0, 1.0).after(Overloaded(retry_after_s=50)) >= 50


async def test_failed_loop_is_started_again_and_a_returned_one_is_not(clock: FakeClock) -> None:
    runs = []

    async def loop() -> None:
        runs.append(clock.monotonic())
        if len(runs) < 3:
            raise RuntimeError("again")

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: supervise("loop", loop, clock=clock))
        await clock.advance(timedelta(minutes=5))

    assert len(runs) == 3


async def test_what_no_retry_can_help_is_not_tried_again(clock: FakeClock) -> None:
    async def loop() -> None:
        raise NodeInUse

    with pytest.raises(NodeInUse):
        await supervise("loop", loop, clock=clock)


async def test_slots_are_numbered_and_the_lowest_free_one_is_given() -> None:
    slots = Slots(3)
    taken = [slots.take() for _ in range(3)]
    slots.release(taken[1])

    assert taken == [0, 1, 2]
    assert slots.open == 1
    assert slots.take() == 1


async def test_a_task_that_has_ended_makes_room_and_keeps_its_number_and_a_reserved_slot_is_not_open() -> None:
    slots = Slots(2)
    first, second = slots.take(), slots.take()
    assert (slots.free, slots.open) == (0, 0)

    slots.end(first)
    assert (slots.free, slots.open) == (1, 1)
    slots.reserve(1)
    assert (slots.free, slots.open) == (1, 0)
    slots.unreserve(1)
    assert slots.take() == 2  # the first one's user may still own files
    assert slots.free == 0
    slots.release(first)
    assert slots.free == 0
    slots.end(second)
    assert slots.free == 1
    assert slots.take() == first


async def test_ended_tasks_whose_results_find_no_room_hold_up_the_next_ones_in_the_end() -> None:
    slots = Slots(2)

    begun = 0
    while slots.free:
        slots.end(slots.take())
        begun += 1

    assert begun == 4
    slots.release(0)
    assert slots.free == 1


async def test_a_recovered_execution_gets_its_slot_back_if_nobody_has_it() -> None:
    slots = Slots(3)

    assert [slots.take(2), slots.take(2), slots.take(7), slots.take(-1), slots.take(None)] == [2, 0, 1, 3, 4]
    slots.release(2)
    slots.release(0)
    assert [slots.take(2), slots.take()] == [2, 0]


async def test_everybody_who_waits_for_a_slot_hears_of_it() -> None:
    slots = Slots(1)
    slot = slots.take()
    got: list[int] = []

    async def wait() -> None:
        while not slots.free:
            await slots.changed()
        got.append(slots.take())
        slots.release(got[-1])

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            slots.release(slot)
    assert got == [0, 0, 0]


async def test_recovered_executions_beyond_the_slots_get_numbers_of_their_own() -> None:
    slots = Slots(1)

    assert [slots.take(), slots.take(), slots.take()] == [0, 1, 2]
    slots.release(2)
    slots.release(0)
    assert slots.free == 0  # one of them runs, and one is the number that may
    slots.release(1)
    assert slots.free == 1
