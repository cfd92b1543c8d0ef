"""What runs tasks: one module per kind, behind the port in ``base``."""

__all__: list[str] = []
