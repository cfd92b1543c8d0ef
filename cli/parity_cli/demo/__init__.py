"""``parity demo``: the whole market at work on this machine."""
