"""Sessions whose rounds Flower carries: one SuperLink each, supervised, with the market's own rounds behind it."""

from __future__ import annotations

from parity_market.flower.certificates import Certificates, make_certificates

__all__ = ["Certificates", "make_certificates"]
