"""Where the market keeps what it must not lose."""

from parity_market.store.base import MarketStore, ReadTx, Tx, Value
from parity_market.store.sqlite import SqliteStore, open_sqlite

__all__ = ["MarketStore", "ReadTx", "SqliteStore", "Tx", "Value", "open_sqlite"]
