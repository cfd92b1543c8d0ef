"""One suite for every clock: the machine's, the one that tests move, and the one whose sleepers need not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, timedelta

import pytest

from parity_client.testing import JumpClock
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.testing.clock import FakeClock

Pass = Callable[[float], Awaitable[None]]


@pytest.fixture(params=["system", "fake", "jump"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def timed(kind: str) -> tuple[Clock, Pass]:
    """Return a clock, and what lets at least that many seconds pass on it."""
    if kind == "system":
        return SystemClock(), asyncio.sleep
    if kind == "jump":
        jump = JumpClock()

        async def leap(seconds: float) -> None:
            await asyncio.sleep(0)
            jump.advance(seconds)

        return jump, leap
    fake = FakeClock()
    return fake, lambda seconds: fake.advance(timedelta(seconds=seconds))


async def test_now_is_utc_and_says_so(timed: tuple[Clock, Pass]) -> None:
    clock, _ = timed

    assert clock.now().tzinfo is UTC


async def test_both_times_go_on_together(timed: tuple[Clock, Pass]) -> None:
    clock, let_pass = timed
    wall, since = clock.now(), clock.monotonic()

    await let_pass(0.02)

    assert clock.monotonic() - since >= 0.019
    assert clock.now() - wall >= timedelta(seconds=0.015)


async def test_monotonic_never_goes_back(timed: tuple[Clock, Pass]) -> None:
    clock, let_pass = timed
    seen = []
    for _ in range(20):
        seen.append(clock.monotonic())
        await let_pass(0.0005)

    assert seen == sorted(seen)


async def test_a_sleeper_wakes_after_its_time_and_not_before(timed: tuple[Clock, Pass]) -> None:
    clock, let_pass = timed
    since, woke = clock.monotonic(), []

    async def sleeper() -> None:
        await clock.sleep(0.02)
        woke.append(clock.monotonic())

    task = asyncio.ensure_future(sleeper())
    await let_pass(0.05)
    await asyncio.wait_for(task, 5)

    assert woke[0] - since >= 0.019


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_no_time_is_no_wait_but_a_turn_for_others(timed: tuple[Clock, Pass], seconds: float) -> None:
    clock, _ = timed
    others = []
    asyncio.get_running_loop().call_soon(others.append, "had a turn")

    await asyncio.wait_for(clock.sleep(seconds), 5)

    assert others == ["had a turn"]


async def test_a_sleeper_can_be_cancelled(timed: tuple[Clock, Pass]) -> None:
    clock, _ = timed
    task = asyncio.ensure_future(clock.sleep(3600))
    await asyncio.sleep(0)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("kind", ["system", "fake"])  # the third one's sleepers do not wait for each other
async def test_many_sleepers_wake_in_the_order_of_their_times(timed: tuple[Clock, Pass]) -> None:
    clock, let_pass = timed
    woke: list[float] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woke.append(seconds)

    tasks = [asyncio.ensure_future(sleeper(seconds)) for seconds in (0.06, 0.02, 0.04)]
    await let_pass(0.1)
    await asyncio.gather(*tasks)

    assert woke == [0.02, 0.04, 0.06]
