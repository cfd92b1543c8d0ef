"""``python -m parity_node.testing.node EXECUTOR``: a real agent process whose tasks are scripted.

``noop`` ends every task at once; ``file:SIZE:SECONDS`` brings a result file of SIZE bytes after SECONDS. Settings come
from the environment as for ``parity node run``. For crash tests and benchmarks: what is measured is the node.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from parity_node.executors.base import Executor
from parity_node.run import NodeServices, run_node
from parity_node.settings import load_settings
from parity_node.testing.executors import FileExecutor, NoopExecutor
from parity_protocol.errors import ParityError
from parity_protocol.task import TaskKind

__all__ = ["main"]


def main(script: str) -> int:
    """Run a node whose executor follows ``script``; return 0 when it was drained, 1 when it could not run."""
    name, _, rest = script.partition(":")
    size, _, seconds = rest.partition(":")

    def make(services: NodeServices) -> Mapping[TaskKind, Executor]:
        if name == "noop":
            return {TaskKind.COMMAND: NoopExecutor()}
        return {TaskKind.COMMAND: FileExecutor(services.clock, size=int(size), run_for_s=float(seconds or 0))}

    try:
        run_node(load_settings(), executors=make)
    except ParityError as exc:
        sys.stderr.write(f"{exc.code}: {exc.message}\n{exc.hint()}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "noop"))
