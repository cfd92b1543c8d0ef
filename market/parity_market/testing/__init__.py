"""Public builders for tests of the market, ours and other people's."""

from parity_market.testing.builders import (
    CHAIN_KEY,
    DOMAIN,
    MARKET_THUMBPRINT,
    SPENDER,
    Bench,
    SignalLog,
    capability,
    checked_report,
    command_submission,
    final_report,
    fl_submission,
    new_node,
)

__all__ = [
    "CHAIN_KEY",
    "DOMAIN",
    "MARKET_THUMBPRINT",
    "SPENDER",
    "Bench",
    "SignalLog",
    "capability",
    "checked_report",
    "command_submission",
    "final_report",
    "fl_submission",
    "new_node",
]
