"""What ``parity node status``, ``parity node logs`` and a health check get from the running agent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from parity_node.version import node_version
from parity_protocol.errors import BadField, NotFound

if TYPE_CHECKING:
    from parity_node.agent import Agent

__all__ = ["agent_health", "agent_status", "read_logs"]


def agent_status(agent: Agent) -> dict[str, Any]:
    """Return one JSON document; amounts are decimal strings of base units, times RFC 3339 UTC, durations seconds."""
    parts, standing = agent.parts, agent.presence.standing
    now = parts.clock.now()
    capability = agent.capability()
    market = agent.trust.market.document if agent.trust.is_established else None
    return {
        "node_id": parts.keys.node_id,
        "operator": parts.keys.operator.address,
        "pid": os.getpid(),
        "version": node_version(),
        "uptime_s": round((now - agent.started_at).total_seconds(), 1),
        "state": "draining" if agent.is_draining else "online" if standing.is_eligible else "waiting",
        "market": {
            "url": parts.settings.market_url(),
            "name": market.name if market is not None else "",
            "token_symbol": market.token_symbol if market is not None else "",
            "token_decimals": market.token_decimals if market is not None else 18,
            "enrolled": standing.is_enrolled,
            "eligible": standing.is_eligible,
            "problems": list(standing.problems),
            "bond": str(standing.bond),
            "min_bond": str(standing.min_bond),
            "heard_s_ago": round((now - standing.heard_at).total_seconds(), 1) if standing.heard_at else None,
            "clock_offset_s": round(standing.clock_offset_s, 3),
        },
        "slots": {"total": agent.slots.count, "free": agent.slots.free},
        "executors": {kind.value: state.model_dump(mode="json") for kind, state in capability.executors.items()},
        "running": [
            {
                "task_id": live.row.task_id,
                "execution_id": live.row.id,
                "kind": live.row.kind,
                "phase": live.row.phase.value,
                "fence": live.row.fence,
                "reward": str(live.row.reward),
                "seconds": round(max(0.0, now.timestamp() - live.row.started_at), 1) if live.row.started_at else 0.0,
            }
            for live in agent.runner.running
        ],
        "outbox": {"reports": agent.outbox.rows, "bytes": agent.outbox.size_bytes, "error": agent.outbox.last_error},
        "refusals": [
            {"rule": item.rule, "message": item.message, "count": item.count, "last_task": item.last_task}
            for item in agent.metrics.refusals.values()
        ],
        "policy": {"digest": agent.policy.digest, "problem": agent.policy.problem},
        "lends": list(capability.shards),
        "disk_free_bytes": capability.disk_free_bytes,
        "disks": [{"folders": list(volume.names), "free_bytes": volume.free_bytes} for volume in parts.disk.volumes()],
        "disk_floor_bytes": parts.disk.floor_bytes,
        "obstacle": agent.obstacle(),
    }


def agent_health(agent: Agent) -> tuple[bool, dict[str, object]]:
    """Return whether the node takes work now, and the document that says so."""
    standing = agent.presence.standing
    is_ready = standing.is_eligible and not agent.is_draining
    return is_ready, {
        "status": "ok" if is_ready else "degraded",
        "version": node_version(),
        "enrolled": standing.is_enrolled,
        "eligible": standing.is_eligible,
        "draining": agent.is_draining,
        "problems": list(standing.problems),
    }


async def read_logs(agent: Agent, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a running task printed from a byte offset on, at most 64 KiB.

    Raises:
        NotFound: No such task runs here now; the market keeps the log of one that has ended.
    """
    task_id, offset = request.get("task_id"), request.get("offset", 0)
    if not isinstance(task_id, str) or isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise BadField("logs needs a task_id and an offset of 0 or more", field="task_id")
    live = next((item for item in agent.runner.running if item.row.task_id == task_id), None)
    if live is None:
        raise NotFound(f"task {task_id[:36]} does not run here now")
    data = await live.executor.logs(live.handle, offset) if live.handle is not None else b""
    return {
        "task_id": task_id,
        "offset": offset,
        "next_offset": offset + len(data),
        "text": data.decode("utf-8", errors="replace"),
    }
