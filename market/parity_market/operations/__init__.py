"""What the market does to its store: each operation decides and writes in one transaction."""

__all__: list[str] = []
