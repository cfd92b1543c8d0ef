"""Public fakes: a market in memory, the same over HTTP, and executors that follow a script."""

__all__: list[str] = []
