"""The node (runner): takes signed work, runs it in a sandbox, reports and is paid."""

__all__: list[str] = []
