"""The vocabulary of the market: types, signed documents and pure decisions. No module here does I/O."""

__all__: list[str] = []
