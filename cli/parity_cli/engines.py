"""Engines that live in environments of their own: making one from its hashed list of packages, and removing it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from parity_protocol.errors import Conflict, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ENGINES", "Engine", "install", "look", "remove"]

INSTALL_S = 900.0  # that fetching and unpacking may take
CHECK_S = 60.0
ENGINES = ("flower",)
_TAIL_CHARS = 1_200


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine's environment as it is on this machine.

    Attributes:
        name: ``flower``.
        version: That this program works with.
        folder: Where the environment is, or would be.
        is_installed: It is whole.
        lock_sha256: Of the list of packages that it was made from, hex; empty where it is not installed.
    """

    name: str
    version: str
    folder: Path
    is_installed: bool
    lock_sha256: str = ""

    @property
    def is_current(self) -> bool:
        """It was made from the list that this program has."""
        from parity_fl.engines.flower import lock_file

        return self.is_installed and self.lock_sha256 == sha256(lock_file().read_bytes()).hexdigest()


def look(name: str) -> Engine:
    """Return an engine as it is here.

    Raises:
        NotFound: There is no engine of this name.
    """
    from parity_fl.engines.flower import ENGINE_FILE, FLWR_VERSION, engine_folder

    if name not in ENGINES:
        raise NotFound(f"there is no engine {name!a}; there is {', '.join(ENGINES)}")
    folder = engine_folder()
    try:
        written = json.loads((folder / ENGINE_FILE).read_bytes())
        return Engine(name, FLWR_VERSION, folder, is_installed=True, lock_sha256=str(written["lock_sha256"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Engine(name, FLWR_VERSION, folder, is_installed=False)


def install(name: str, *, say: Callable[[str], None], again: bool = False) -> Engine:
    """Make an engine's environment; nothing when it is whole and of the same packages.

    Args:
        say: Told each step.
        again: Make it anew in any case.

    Raises:
        Unavailable: Packages could not be fetched or do not match their hashes; the message ends with what was said.
        Conflict: Another process is installing it.
    """
    from parity_fl.engines.flower import ENGINE_FILE, lock_file

    engine, lock = look(name), lock_file()
    if engine.is_current and not again:
        return engine
    with _alone(engine.folder):
        shutil.rmtree(engine.folder, ignore_errors=True)  # a half-made one, or one of other packages
        began = time.monotonic()
        count = sum(line[:1].isalnum() and "==" in line for line in lock.read_text().splitlines())
        say(f"{name} {engine.version}: {count} packages, each checked against its hash, into {engine.folder}")
        try:
            _fill(engine.folder, lock, say)
            _try(engine)
            digest = sha256(lock.read_bytes()).hexdigest()
            made = {"engine": name, "version": engine.version, "lock_sha256": digest, "python": sys.version.split()[0]}
            (engine.folder / ENGINE_FILE).write_text(json.dumps(made, indent=2) + "\n")
        except BaseException:
            shutil.rmtree(engine.folder, ignore_errors=True)
            raise
        say(f"{name} {engine.version} is ready after {time.monotonic() - began:.0f} s")
    return look(name)


def remove(name: str) -> bool:
    """Remove an engine's environment; returns False when there was none."""
    engine = look(name)
    if not engine.folder.exists():
        return False
    with _alone(engine.folder):
        shutil.rmtree(engine.folder)
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time work on a folder."""
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Conflict(f"another process works on {folder}") from exc
        yield


def _fill(folder: Path, lock: Path, say: Callable[[str], None]) -> None:
    """Install with uv where there is one, else with pip; each brings its own settings of where packages come from."""
    python = folder / "bin" / "python"
    hashed = ["--require-hashes", "--no-deps", "-r", str(lock)]
    uv = _uv()
    if uv is not None:
        problem = _run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)]) or _run(
            [*uv, "pip", "install", "--quiet", "--python", str(python), *hashed]
        )
        if not problem:
            return
        say("uv could not; trying pip")
        shutil.rmtree(folder, ignore_errors=True)
    problem = _run([sys.executable, "-m", "venv", str(folder)]) or _run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *hashed]
    )
    if problem:
        raise Unavailable(
            f"the packages could not be installed: {problem}",
            hint="Check that this machine reaches its package index (uv and pip use their own settings), then try again.",
        )


def _uv() -> list[str] | None:
    beside = Path(sys.executable).with_name("uv")
    for candidate in ("uv", str(beside)):
        # Asked for its version, because a shim may stand in PATH for a uv that is not there.
        if shutil.which(candidate) and not _run([candidate, "--version"]):
            return [candidate]
    return None


def _run(argv: list[str]) -> str:
    """Run a program to its end; return what it said last if it failed, else an empty text."""
    env = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    if "PIP_INDEX_URL" in env:
        env.setdefault("UV_DEFAULT_INDEX", env["PIP_INDEX_URL"])
    try:
        done = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{argv[0]} was stopped after {INSTALL_S:g} s"
    except OSError as exc:
        return f"{argv[0]}: {exc.strerror}"
    if done.returncode == 0:
        return ""
    return (done.stderr or done.stdout).strip()[-_TAIL_CHARS:] or f"{argv[0]} ended with {done.returncode}"


def _try(engine: Engine) -> None:
    """Import it once; whatever is wrong breaks now and not in a session."""
    ask = "import importlib.metadata, flwr.app; print(importlib.metadata.version('flwr'))"
    folder = engine.folder
    env = {"PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(folder), "FLWR_TELEMETRY_ENABLED": "0"}
    argv = [str(folder / "bin" / "python"), "-I", "-c", ask]
    try:
        done = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CHECK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Unavailable(f"the new environment does not work: {exc}") from exc
    if done.returncode != 0:
        raise Unavailable(f"the new environment does not work: {done.stderr.strip()[-_TAIL_CHARS:]}")
    if done.stdout.strip() != engine.version:
        raise Unavailable(f"the environment has flwr {done.stdout.strip()}, expected {engine.version}")
