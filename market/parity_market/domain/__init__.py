"""The market's pure decisions."""

__all__: list[str] = []
