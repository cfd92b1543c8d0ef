"""``parity demo``: the whole market at work on this machine."""

__all__: list[str] = []
