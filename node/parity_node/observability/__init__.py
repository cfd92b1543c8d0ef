"""What operators and dashboards see: logs, metrics, health."""

__all__: list[str] = []
