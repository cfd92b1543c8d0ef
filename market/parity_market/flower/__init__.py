"""Sessions whose rounds Flower carries: one SuperLink each, supervised, with the market's own rounds behind it."""

from __future__ import annotations

from parity_market.flower.carrier import FlowerSessions, Holder, is_carried, public_key_of
from parity_market.flower.certificates import Certificates, make_certificates
from parity_market.flower.fleets import Fleets

__all__ = [
    "Certificates",
    "Fleets",
    "FlowerSessions",
    "Holder",
    "is_carried",
    "make_certificates",
    "public_key_of",
]
