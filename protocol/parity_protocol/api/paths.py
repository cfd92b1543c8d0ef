"""Where each request goes. Every path below ``/api/v1`` answers at ``/api`` as well, as the Parity network's does."""

from __future__ import annotations

__all__ = [
    "API",
    "ENROL",
    "FL_MODEL_UPDATES",
    "FL_SESSIONS",
    "GROUPS",
    "HEARTBEAT",
    "JWKS",
    "LEASE_CLAIMS",
    "LEASE_LOGS",
    "LEASE_POLL",
    "LEASE_RELEASE",
    "LEASE_RENEW",
    "LEASE_START",
    "REPORTS",
    "RUNNERS",
    "SIWE",
    "SIWE_NONCE",
    "STORAGE_LIST",
    "STORAGE_UPLOAD",
    "TASKS",
    "TASK_CHECK",
    "account_path",
    "fl_part_path",
    "fl_round_path",
    "fl_session_path",
    "gateway_path",
    "group_path",
    "node_path",
    "runner_task_path",
    "storage_path",
    "task_path",
]

API = "/api/v1"
JWKS = "/.well-known/jwks.json"
SIWE_NONCE = f"{API}/auth/nonce"
SIWE = f"{API}/auth/siwe"
ENROL = f"{API}/nodes"
HEARTBEAT = f"{API}/nodes/heartbeat"
LEASE_POLL = f"{API}/leases/poll"
LEASE_CLAIMS = f"{API}/leases/claims"
LEASE_RENEW = f"{API}/leases/renew"
LEASE_START = f"{API}/leases/start"
LEASE_RELEASE = f"{API}/leases/release"
LEASE_LOGS = f"{API}/leases/logs"
REPORTS = f"{API}/reports"
TASKS = f"{API}/tasks"
TASK_CHECK = f"{API}/tasks/check"
GROUPS = f"{API}/groups"
STORAGE_UPLOAD = f"{API}/storage/upload"
STORAGE_LIST = f"{API}/storage/list"
FL_SESSIONS = f"{API}/federated-learning/sessions"
FL_MODEL_UPDATES = f"{API}/federated-learning/model-updates"  # the old network's; so the next
RUNNERS = f"{API}/runners"


def task_path(task_id: str, leaf: str = "") -> str:
    """Return the path of a task, or of ``leaf`` below it (status, result, logs, reward, cancel, claim, …)."""
    return f"{TASKS}/{task_id}/{leaf}" if leaf else f"{TASKS}/{task_id}"


def group_path(group_id: str, leaf: str = "") -> str:
    """Return the path of a task group, or of ``leaf`` below it."""
    return f"{GROUPS}/{group_id}/{leaf}" if leaf else f"{GROUPS}/{group_id}"


def node_path(node_id: str, leaf: str = "") -> str:
    """Return the path of a node, or of ``leaf`` below it (earnings, why-no-work)."""
    return f"{API}/nodes/{node_id}/{leaf}" if leaf else f"{API}/nodes/{node_id}"


def account_path(account: str) -> str:
    """Return the path of a submitter's account at this market."""
    return f"{API}/accounts/{account}"


def storage_path(verb: str, cid: str) -> str:
    """Return the path of ``download``, ``info`` or ``pin`` for a blob."""
    return f"{API}/storage/{verb}/{cid}"


def gateway_path(cid: str, path: str = "") -> str:
    """Return the trustless gateway's path of a blob; add ``?format=raw`` or ``?format=car``.

    Args:
        path: Inside a folder, percent-encoded, without a slash at its start.
    """
    return f"/ipfs/{cid}/{path}" if path else f"/ipfs/{cid}"


def fl_session_path(group_id: str, leaf: str = "") -> str:
    """Return the path of a session that trains in rounds, or of ``leaf`` below it (next, model, pause, resume, stop)."""
    return f"{FL_SESSIONS}/{group_id}/{leaf}" if leaf else f"{FL_SESSIONS}/{group_id}"


def fl_round_path(group_id: str, number: int | str, phase: int | str, leaf: str = "") -> str:
    """Return the path of one phase of a round, or of ``leaf`` below it (model)."""
    path = fl_session_path(group_id, f"rounds/{number}/phases/{phase}")
    return f"{path}/{leaf}" if leaf else path


def fl_part_path(group_id: str, number: int | str, phase: int | str, part: int | str) -> str:
    """Return the path of one part's update to one phase of a round."""
    return fl_round_path(group_id, number, phase, f"parts/{part}")


def runner_task_path(task_id: str, leaf: str) -> str:
    """Return the old network's path of what a runner does with a task (start, result)."""
    return f"{RUNNERS}/tasks/{task_id}/{leaf}"
