"""What the market does on its own: one task per loop, each supervised."""

from parity_market.loops.starting import run_all, start_up

__all__ = ["run_all", "start_up"]
