"""Where a node keeps things."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from parity_contracts.files import make_private_dir
from parity_node.settings import NodeSettings
from parity_protocol.ids import NodeId

__all__ = ["Folders", "make_folders"]

ROOT_EXEC_DIR = Path(
    "/var/lib/parity-node/exec"
)  # reachable by the sandbox's uid, unlike anything below a home of 0700


@dataclass(frozen=True, slots=True)
class Folders:
    """Folders that exist."""

    state: Path  # keys, journal, lock, control socket; 0700
    executions: Path  # one folder per execution, of this node alone
    results: Path  # large results until they are uploaded; 0700
    cache: Path  # verified blobs; 0700

    def by_name(self) -> dict[str, Path]:
        """Return them by the names that people read."""
        return {"state": self.state, "executions": self.executions, "results": self.results, "cache": self.cache}


def make_folders(settings: NodeSettings, node_id: NodeId) -> Folders:
    """Create what is missing.

    Raises:
        ConfigInvalid: One belongs to somebody else.
    """
    state = make_private_dir(settings.state_dir())
    if settings.runner_exec_dir is not None:
        executions = settings.runner_exec_dir.expanduser().absolute() / node_id[:16]
    elif os.geteuid() == 0:
        executions = ROOT_EXEC_DIR / node_id[:16]
    else:
        executions = state / "exec"
    executions.parent.mkdir(parents=True, exist_ok=True)
    executions.mkdir(mode=0o711, exist_ok=True)  # a sandbox's uid passes through to its own folder, and lists nothing
    return Folders(state, executions, make_private_dir(state / "results"), make_private_dir(state / "cache"))
