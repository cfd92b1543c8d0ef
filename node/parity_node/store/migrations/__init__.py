"""The journal's schema, one file per version."""

__all__: list[str] = []
