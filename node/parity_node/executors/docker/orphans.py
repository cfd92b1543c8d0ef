"""Containers of this node that belong to no execution any more: left by a crash, or made by a call that was given up."""

from __future__ import annotations

from pathlib import Path

import structlog

from parity_node.executors.docker.engine import Engine
from parity_node.executors.docker.usage import own_group, remove_group
from parity_protocol.errors import ParityError

__all__ = ["remove_orphans"]

log = structlog.get_logger(__name__)


async def remove_orphans(engine: Engine, node_id: str, exec_dir: Path) -> int:
    """Remove this node's containers whose execution has no folder, and return how many.

    An execution's folder is made before its container and removed after it, so that one without a folder is never in
    use. Containers without this node's label are not even looked at.

    Raises:
        Unreachable: The engine does not answer.
    """
    removed = 0
    for container, labels in (await engine.containers(node=node_id)).items():
        execution = labels.get("execution", "")
        if execution and "/" not in execution and (exec_dir / execution).is_dir():
            continue
        try:
            await engine.remove(container)
        except ParityError as exc:
            log.warning("orphan_not_removed", container=container, error=exc.message)
            continue
        if execution:
            remove_group(own_group(execution, cgroup_driver="cgroupfs"))
        removed += 1
        log.info("orphan_removed", container=container, execution_id=execution)
    return removed
