"""Training where every part has rows of its own: what is agreed on, the market's side, a node's side."""

from parity_fl.sharded.server import ShardedServer
from parity_fl.sharded.trainer import ShardedTrainer

__all__ = ["ShardedServer", "ShardedTrainer"]
