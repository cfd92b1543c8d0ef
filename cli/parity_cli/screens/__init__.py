"""What people see: functions from documents to rich renderables."""

__all__: list[str] = []
