"""The environment of a task: exactly what it declared, and three names that every program expects."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CHILD_PATH", "child_env", "task_env"]

CHILD_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
)


def task_env(declared: Mapping[str, str], *, home: str) -> dict[str, str]:
    """Return a task's whole environment; what it declared wins. Nothing of the node's own is in it."""
    return {"PATH": CHILD_PATH, "LANG": "C.UTF-8", "HOME": home, **declared}


def child_env(*, home: str) -> dict[str, str]:
    """Return the environment of a training process: no secrets, no proxies, one thread per library.

    Threads are fixed because the order in which they add decides the last bits of a sum.
    """
    return {
        "PATH": CHILD_PATH,
        "LANG": "C.UTF-8",
        "HOME": home,
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        **dict.fromkeys(_ONE_THREAD, "1"),
    }
