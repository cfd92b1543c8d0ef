"""An image for the demo's container, made of this machine's own shell and text tools: nothing has to be pulled."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from parity_protocol.errors import NotFound

__all__ = ["IMAGE", "make_image"]

IMAGE = "parity-demo:1"
PROGRAMS = ("sh", "cut", "tail", "sort", "uniq")
LDD_TIMEOUT_S = 10.0
_LIBRARY = re.compile(r"(/\S+) \(0x")  # in a line of ldd
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def make_image() -> bytes:
    """Return a ``docker save`` archive of one layer: a shell, a few tools, and the libraries that they load.

    Raises:
        NotFound: This machine lacks one of them, or is of an unknown kind.
    """
    architecture = _ARCHITECTURES.get(platform.machine())
    if platform.system() != "Linux" or architecture is None:
        raise NotFound(f"no image can be made of a {platform.system()} on {platform.machine()}")
    layer = _layer()
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [IMAGE], "Layers": [f"{digest}/layer.tar"]}]
    return _tar({name: config, f"{digest}/layer.tar": layer, "manifest.json": json.dumps(manifest).encode()})


def _layer() -> bytes:
    files: dict[str, bytes] = {}
    for program in PROGRAMS:
        found = shutil.which(program)
        if found is None:
            raise NotFound(f"this machine has no {program}")
        files[f"bin/{program}"] = Path(found).read_bytes()
        for library in _libraries(found):
            files[library.lstrip("/")] = Path(library).read_bytes()
    return _tar(files)


def _libraries(program: str) -> list[str]:
    try:
        told = subprocess.run(
            ["ldd", program],  # noqa: S607 - a tool of the system, on a program of the system
            capture_output=True,
            text=True,
            timeout=LDD_TIMEOUT_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NotFound(f"ldd cannot tell what {program} loads: {exc}") from exc
    return _LIBRARY.findall(told)  # none: it is static


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), 0o755
            tar.addfile(member, io.BytesIO(files[name]))
    return out.getvalue()
