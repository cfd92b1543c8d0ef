"""Egress: how a task that was granted hosts reaches them, and nothing else."""

from parity_node.executors.egress.grant import PROXY_ADDRESS, Grant, egress_env
from parity_node.executors.egress.inside import listen_inside
from parity_node.executors.egress.proxy import EgressProxy

__all__ = ["PROXY_ADDRESS", "EgressProxy", "Grant", "egress_env", "listen_inside"]
