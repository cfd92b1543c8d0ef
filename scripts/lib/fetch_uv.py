"""Puts the pinned uv into the environment that runs this file, with nothing but the standard library.

Used where a machine has neither pip nor ensurepip. The package index is the one that the machine is configured for
(environment or pip's own files); the wheel counts only if its SHA-256 stands in the lock file.

Usage: python fetch_uv.py LOCK_FILE | --print-index
"""

from __future__ import annotations

import configparser
import hashlib
import io
import json
import os
import platform
import re
import sys
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

TIMEOUT_S = 60
MAX_INDEX_BYTES = 32 << 20
MAX_WHEEL_BYTES = 128 << 20
SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"


def configured_index() -> str | None:
    """Return the index that uv or pip is told to use on this machine, or None if nobody said."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if os.environ.get(name):
            return os.environ[name].rpartition("=")[2] if name == "UV_DEFAULT_INDEX" else os.environ[name]
    home = Path.home()
    # Later files win, as in pip.
    files = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    files += [home / "Library/Application Support/pip/pip.conf", os.environ.get("PIP_CONFIG_FILE", os.devnull)]
    parser = configparser.RawConfigParser()
    parser.read([str(file) for file in files], encoding="utf-8")
    return parser.get("global", "index-url", fallback=None)


def platform_tags() -> tuple[str, ...]:
    """Return how the file name of a wheel for this machine ends, best first."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if sys.platform == "darwin":
        return ("macosx_11_0_arm64",) if machine == "aarch64" else ("macosx_10_12_x86_64",)
    return tuple(f"{libc}_{machine}" for libc in ("manylinux_2_17", "manylinux_2_28", "manylinux2014", "musllinux_1_1"))


def pinned(lock_file: Path) -> tuple[str, set[str]]:
    """Return the version of uv in the lock file and the SHA-256 digests that it allows."""
    text = lock_file.read_text()
    version = re.search(r"^uv==(\S+)", text, re.MULTILINE)
    if version is None:
        raise SystemExit(f"{lock_file} names no uv")
    return version[1], set(re.findall(r"--hash=sha256:([0-9a-f]{64})", text))


def get(url: str, limit: int, accept: str = "*/*") -> bytes:
    """Return what lies at ``url``, refusing more than ``limit`` bytes."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        body = answer.read(limit + 1)
    if len(body) > limit:
        raise SystemExit(f"more than {limit} bytes came from the package index")
    return bytes(body)


def find_wheel(index: str, version: str) -> str:
    """Return the address of the wheel for this machine, from the index's JSON (PEP 691) or HTML (PEP 503) page."""
    page_url = f"{index.rstrip('/')}/uv/"
    page = get(page_url, MAX_INDEX_BYTES, f"{SIMPLE_JSON}, text/html;q=0.5").decode()
    try:
        links = [str(file["url"]) for file in json.loads(page)["files"]]
    except ValueError:
        links = re.findall(r'href="([^"]+)"', page)
    for tag in platform_tags():
        for link in links:
            name = urllib.parse.urlsplit(link).path.rpartition("/")[2]
            if name.startswith(f"uv-{version}-") and tag in name and name.endswith(".whl"):
                return urllib.parse.urljoin(page_url, link.partition("#")[0])
    raise SystemExit(f"no wheel of uv {version} for this machine")


def unpack_uv(wheel: bytes, target: Path) -> None:
    """Write the program in the wheel to ``target``, whole or not at all."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        [member] = [name for name in archive.namelist() if name.endswith(".data/scripts/uv")]
        temporary = target.with_suffix(".part")
        temporary.write_bytes(archive.read(member))
    temporary.chmod(0o755)
    temporary.replace(target)


def main(argument: str) -> int:
    """Fetch, check and unpack; 1 if no index is configured."""
    index = configured_index()
    if index is None:
        return 1
    if argument == "--print-index":
        print(index)
        return 0
    version, allowed = pinned(Path(argument))
    wheel = get(find_wheel(index, version), MAX_WHEEL_BYTES)
    if hashlib.sha256(wheel).hexdigest() not in allowed:
        raise SystemExit(f"the wheel of uv {version} does not match any hash in {argument}")
    unpack_uv(wheel, Path(sys.prefix, "bin", "uv"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
