"""The node of this machine: its settings, as ``parity node`` reads them, and where its keys are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity_client import Home
    from parity_node.settings import NodeSettings

__all__ = ["NODE_FILE", "node_file", "node_settings"]

NODE_FILE = "node.env"  # written by `parity node init`


def node_file(home: Home | None = None) -> Path:
    """Return where ``parity node init`` writes the settings."""
    from parity_client import Home

    return (home or Home()).path / NODE_FILE


def node_settings(path: Path | None = None) -> NodeSettings:
    """Read the node's settings: ``--config-path``, else ``PARITY_CONFIG_PATH``, else ``./.env``, else what init wrote.

    Where neither file nor environment names a market it is the joined one in use, and the state folder is ``node`` in
    ``PARITY_HOME``.

    Raises:
        ConfigInvalid: Carries every problem at once.
    """
    from parity_client import Home
    from parity_node.settings import load_settings
    from parity_protocol.settings import config_path

    home = Home()
    chosen = config_path(path)
    if chosen is None and node_file(home).is_file():
        chosen = node_file(home)
    settings = load_settings(chosen)
    missing: dict[str, Any] = {}
    if not {"runner_market_join", "runner_server_url"} & settings.model_fields_set:
        config = home.load()
        if config.current is not None:
            entry = config.market()[1]
            missing["runner_market_join"] = entry.join
            if entry.rpc and "blockchain_rpc" not in settings.model_fields_set:
                missing["blockchain_rpc"] = entry.rpc
    if "runner_state_dir" not in settings.model_fields_set and os.environ.get("PARITY_HOME"):
        missing["runner_state_dir"] = home.path / "node"
    return load_settings(chosen, **missing) if missing else settings
