"""What this machine can do, as it measures itself."""

__all__: list[str] = []
