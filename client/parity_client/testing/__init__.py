"""Fakes for tests of programs that use ``Client``."""

from parity_client.testing.clock import JumpClock
from parity_client.testing.market import FakeMarket, FakeTask

__all__ = ["FakeMarket", "FakeTask", "JumpClock"]
