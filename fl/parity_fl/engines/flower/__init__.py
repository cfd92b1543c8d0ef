"""Flower as the second engine: what market and node agree on, and where its programs and environment are.

Nothing here imports flwr: it lives in an environment of its own, and only ``programs/`` and the bundle's ``app/`` run there.
"""

from __future__ import annotations

from parity_fl.engines.flower.bundle import bundle, bundle_digest
from parity_fl.engines.flower.fleet import Fleet, is_flower
from parity_fl.engines.flower.home import (
    ENGINE_FILE,
    FLWR_VERSION,
    engine_env,
    engine_folder,
    engines_home,
    flower_python,
    installed_engines,
    is_installed,
    lock_file,
    program,
)

__all__ = [
    "ENGINE_FILE",
    "FLWR_VERSION",
    "Fleet",
    "bundle",
    "bundle_digest",
    "engine_env",
    "engine_folder",
    "engines_home",
    "flower_python",
    "installed_engines",
    "is_flower",
    "is_installed",
    "lock_file",
    "program",
]
