"""The node's journal: what it holds, what it must still say, and what it has pinned."""

__all__: list[str] = []
