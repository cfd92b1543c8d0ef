"""What contains a task: namespaces, system-call filter, limits, another user, an exact environment."""

__all__: list[str] = []
