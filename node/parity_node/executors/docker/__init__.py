"""Containers: the engine's adapter, what it is asked for, and the executor on top."""

__all__: list[str] = []
