"""Aggregation of updates: one pipeline for every rule, in float64, in memory that does not grow with the updates."""

from parity_fl.aggregate.base import Aggregated, Arbiter, Strategy, Update, Updates, UpdatesOf, make_strategy
from parity_fl.strategy import StrategyConfig, check_strategy, read_strategy

__all__ = [
    "Aggregated",
    "Arbiter",
    "Strategy",
    "StrategyConfig",
    "Update",
    "Updates",
    "UpdatesOf",
    "check_strategy",
    "make_strategy",
    "read_strategy",
]
