"""What tests of the whole market share: real processes, and nodes that break the rules."""

__all__: list[str] = []
