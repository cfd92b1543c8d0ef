"""Fakes for tests of programs that use ``Client``."""

from parity_client.testing.clock import JumpClock
from parity_client.testing.market import FakeMarket, FakeTask
from parity_client.testing.training import FakeSession, FakeTraining

__all__ = ["FakeMarket", "FakeSession", "FakeTask", "FakeTraining", "JumpClock"]
