"""The node's version, as manifests and capabilities compare it."""

from __future__ import annotations

import re
from importlib.metadata import version

__all__ = ["node_version"]


def node_version() -> str:
    """Return three numbers, such as ``1.4.2``; a pre-release counts as its release."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version("parity-node"))
    return "0.0.0" if match is None else f"{match[1]}.{match[2]}.{match[3] or 0}"
