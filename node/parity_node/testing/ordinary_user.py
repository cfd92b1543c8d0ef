"""A process that is an ordinary user, started by tests that are root: a checkout of root's own is put where it can be read."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["as_ordinary_user"]

_ENTER = """
import os, subprocess, sys
from pathlib import Path
staging, needed, uid, command = Path(sys.argv[1]), sys.argv[2].split(os.pathsep), sys.argv[3], sys.argv[4:]
def run(*words): subprocess.run(words, check=True)
run("mount", "--make-rprivate", "/")
def closed(path):
    return next((each for each in reversed(Path(path).parents) if not each.stat().st_mode & 0o001), None)
hidden = {path: closed(path) for path in needed if closed(path)}
for at, path in enumerate(hidden):
    (staging / str(at)).mkdir()
    run("mount", "--bind", path, str(staging / str(at)))
for top in sorted(set(hidden.values()), key=str):
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "none", str(top))
for at, path in enumerate(hidden):
    os.makedirs(path, exist_ok=True)
    run("mount", "--bind", str(staging / str(at)), path)
os.chdir(needed[0])
os.execvp("setpriv", ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", *command])
"""


def as_ordinary_user(uid: int, command: Sequence[str], *, staging: Path, needed: Sequence[Path]) -> list[str]:
    """Return the command that runs ``command`` as ``uid``, in a mount namespace in which it can read ``needed``.

    Args:
        staging: An empty folder.
        needed: Folders that lie below one of another user's, at least one; the command begins in the first.
    """
    places = os.pathsep.join(str(path) for path in needed)
    return ["/usr/bin/unshare", "--mount", sys.executable, "-c", _ENTER, str(staging), places, str(uid), *command]
