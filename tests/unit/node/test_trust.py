"""Keys that a market has withdrawn stop counting while the node runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from parity_node.market.trust import MarketTrust
from parity_node.settings import NodeSettings
from parity_node.store.memory import MemoryNodeStore
from parity_node.testing.market import MarketSimulator
from parity_protocol.errors import ParityError, UnknownKey, Unreachable, Untrusted
from parity_protocol.ids import NodeId
from parity_protocol.join import TrustedMarket
from parity_protocol.signing import jws
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_ed25519

NODE = NodeId("ab" * 32)
HOUR = timedelta(hours=1)


class _Rotating(MarketSimulator):
    """A market that has put another manifest key in the place of a stolen one."""

    has_rotated = False
    failure: ParityError | None = None

    async def trust(self) -> TrustedMarket:
        if self.failure is not None:
            raise self.failure
        found = await super().trust()
        new = deterministic_ed25519("new manifest key").public_key
        return replace(found, manifest_keys={new.thumbprint(): new}) if self.has_rotated else found


@pytest.fixture
def market(clock: FakeClock) -> _Rotating:
    return _Rotating(clock)


@pytest.fixture
async def trust(market: _Rotating, clock: FakeClock) -> MarketTrust:
    settings = NodeSettings(_env_file=None)
    found = MarketTrust(market, MemoryNodeStore(), settings, node_id=NODE, clock=clock)
    await found.establish()
    return found


def _forged(market: _Rotating, clock: FakeClock) -> str:
    """Return what whoever has the old key can sign."""
    claims = jws.claims(market.thumbprint, "task", NODE, jti="j", now=clock.now(), ttl=timedelta(minutes=10))
    return jws.sign(claims, market.manifest_key, "manifest+jws")


async def _error(check: Callable[[], Awaitable[object]]) -> ParityError:
    with pytest.raises(ParityError) as caught:
        await check()
    return caught.value


async def test_a_withdrawn_key_stops_counting_within_an_hour(
    trust: MarketTrust, market: _Rotating, clock: FakeClock
) -> None:
    async def check() -> object:
        return await trust.verify(_forged(market, clock), node_version="0.1.0")

    assert not isinstance(await _error(check), UnknownKey), "its signature counts; only its content is refused"

    market.has_rotated = True
    await clock.advance(HOUR)

    assert isinstance(await _error(check), UnknownKey)


async def test_a_market_that_is_away_is_believed_for_a_day(
    trust: MarketTrust, market: _Rotating, clock: FakeClock
) -> None:
    async def check() -> object:
        return await trust.verify(_forged(market, clock), node_version="0.1.0")

    market.failure = Unreachable("away")
    await clock.advance(23 * HOUR)
    assert not isinstance(await _error(check), UnknownKey | Unreachable)

    await clock.advance(HOUR)
    assert isinstance(await _error(check), Unreachable)

    market.failure = None
    assert not isinstance(await _error(check), UnknownKey | Unreachable)


async def test_an_answer_of_somebody_else_buys_old_keys_no_time(
    trust: MarketTrust, market: _Rotating, clock: FakeClock
) -> None:
    market.failure = Untrusted("not the pinned identity")
    await clock.advance(HOUR)

    for _ in range(3):
        error = await _error(lambda: trust.verify(_forged(market, clock), node_version="0.1.0"))
        assert error is market.failure
