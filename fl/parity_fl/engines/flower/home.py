"""Where flwr's environment is, and how a program is started in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from parity_protocol.errors import Unavailable

__all__ = [
    "ENGINE_FILE",
    "FLWR_VERSION",
    "engine_env",
    "engine_folder",
    "engines_home",
    "flower_python",
    "installed_engines",
    "is_installed",
    "lock_file",
    "program",
]

FLWR_VERSION: Final = "1.41.0"
"""A SuperLink refuses a SuperNode of another minor version, and ``programs/`` holds on to parts that are not public."""

ENGINE_FILE: Final = "engine.json"
"""Written last by ``parity fl engine install``: without it the environment is not whole."""

_MISSING: Final = "engine flower is not installed here: parity fl engine install flower"


def engines_home(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of all engines: ``PARITY_ENGINES``, else below ``PARITY_HOME``, else in the user's data folder."""
    env = os.environ if environ is None else environ
    if env.get("PARITY_ENGINES"):
        return Path(env["PARITY_ENGINES"]).expanduser().absolute()
    if env.get("PARITY_HOME"):  # a service's, which may not see its user's other folders
        return Path(env["PARITY_HOME"]).expanduser().absolute() / "engines"
    data = env.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "parity-node" / "engines"


def engine_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return where flwr's environment is, or would be."""
    return engines_home(environ) / f"flower-{FLWR_VERSION}"


def is_installed() -> bool:
    """Say whether ``flower_python`` would find one."""
    return (engine_folder() / ENGINE_FILE).is_file() or _is_here()


def installed_engines() -> tuple[str, ...]:
    """Return the names of the engines beside our own that work here, as a node announces them."""
    return ("flower",) if is_installed() else ()


def flower_python() -> Path:
    """Return the interpreter that has flwr: its own environment's, else ours where the extra ``[flower]`` is installed.

    Raises:
        Unavailable: There is none; names the command that makes one.
    """
    folder = engine_folder()
    if (folder / ENGINE_FILE).is_file():
        return folder / "bin" / "python"
    if _is_here():
        return Path(sys.executable)
    raise Unavailable(_MISSING)


def _is_here() -> bool:
    try:
        return version("flwr") == FLWR_VERSION
    except PackageNotFoundError:
        return False


def lock_file() -> Path:
    """Return the hashed list of packages that the environment is made from.

    Raises:
        Unavailable: This installation does not have it.
    """
    beside = Path(__file__).with_name("requirements.lock")  # in a wheel
    in_checkout = Path(__file__).parents[4] / "requirements" / "flower.lock"
    for path in (beside, in_checkout):
        if path.is_file():
            return path
    raise Unavailable(f"the list of the engine's packages is missing: {beside}")


def program(name: str) -> Path:
    """Return one of our programs that run in flwr's environment: ``superlink``, ``supernode`` or ``control``."""
    return Path(__file__).parent / "programs" / f"{name}.py"


def engine_env(home: Path, *, python: Path) -> dict[str, str]:
    """Return the whole environment of a Flower process: it asks nobody for updates and tells nobody that it runs.

    Args:
        home: Its own folder; apps are unpacked there.
        python: From ``flower_python``; the programs beside it are found by name.
    """
    return {
        "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "FLWR_HOME": str(home / "flwr"),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    }
