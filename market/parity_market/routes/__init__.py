"""The market's HTTP routes, one module a noun. Each exports ``ENDPOINTS``."""

__all__: list[str] = []
