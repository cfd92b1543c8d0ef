"""The market (coordinator): matches, verifies, aggregates, settles."""

__all__: list[str] = []
