"""A node whose executor does nothing: what remains is what the network itself costs."""

from __future__ import annotations

from parity_node.run import run_node
from parity_node.settings import load_settings
from parity_node.testing.executors import NoopExecutor
from parity_protocol.task import TaskKind

if __name__ == "__main__":
    run_node(load_settings(), executors=lambda _: {TaskKind.COMMAND: NoopExecutor()})
