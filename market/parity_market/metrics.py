"""What the market counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = [
    "CHAIN_HEAD",
    "COMMITS",
    "LEASES_LIVE",
    "NODES_ONLINE",
    "PAYOUTS",
    "REGISTRY",
    "REPORTS",
    "REQUESTS",
    "TASKS",
    "VERIFY_SECONDS",
    "render",
]

REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "parity_market_requests_total",
    "Requests by method, path and status.",
    ["method", "path", "status"],
    registry=REGISTRY,
)
REPORTS = Counter(
    "parity_market_reports_total", "Reports by the status of their answer.", ["status"], registry=REGISTRY
)
PAYOUTS = Counter(
    "parity_market_payout_transactions_total", "Payout transactions by outcome.", ["outcome"], registry=REGISTRY
)
COMMITS = Counter("parity_market_commits_total", "Commits of the store.", registry=REGISTRY)
NODES_ONLINE = Gauge("parity_market_nodes_online", "Nodes that spoke within two heartbeats.", registry=REGISTRY)
TASKS = Gauge("parity_market_tasks", "Tasks by state.", ["state"], registry=REGISTRY)
LEASES_LIVE = Gauge("parity_market_leases_live", "Live leases.", registry=REGISTRY)
CHAIN_HEAD = Gauge("parity_market_chain_head_block", "Newest block that was read completely.", registry=REGISTRY)
VERIFY_SECONDS = Histogram(
    "parity_market_verify_seconds", "Time to verify an update or merge a group.", registry=REGISTRY
)


def render() -> bytes:
    """Return all metrics in the text exposition format."""
    return generate_latest(REGISTRY)
