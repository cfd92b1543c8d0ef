"""The chain as others see it: the port, its calls as values, and the adapters."""

__all__: list[str] = []
