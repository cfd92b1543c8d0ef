"""The market as the node sees it: the port, its HTTPS adapter, and how its identity is pinned."""

__all__: list[str] = []
