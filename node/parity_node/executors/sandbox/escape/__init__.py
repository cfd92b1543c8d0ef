"""Attempts to escape, made from inside a sandbox; nothing here is imported by a running node but the names."""

__all__: list[str] = []
