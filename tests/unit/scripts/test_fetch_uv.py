"""The last way to uv: the standard library alone, and only bytes whose hash is pinned."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

INDEX = "https://index.example/simple"


@pytest.fixture
def fetch_uv(load_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return load_script("fetch_uv")


@pytest.fixture
def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("uv-1.2.3.data/scripts/uv", b"the program")
        archive.writestr("uv/__init__.py", b"")
    return buffer.getvalue()


def write_lock(folder: Path, digest: str) -> Path:
    lock = folder / "bootstrap.lock"
    lock.write_text(f"uv==1.2.3 \\\n    --hash=sha256:{digest}\n")
    return lock


def serve(monkeypatch: pytest.MonkeyPatch, fetch_uv: ModuleType, pages: dict[str, bytes]) -> None:
    monkeypatch.setattr(fetch_uv, "get", lambda url, limit, accept="*/*": pages[url])
    monkeypatch.setattr(fetch_uv, "platform_tags", lambda: ("manylinux_2_17_x86_64",))
    monkeypatch.setenv("PIP_INDEX_URL", INDEX)


def test_the_wheel_is_unpacked_when_its_hash_is_pinned(
    fetch_uv: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: bytes
) -> None:
    name = "uv-1.2.3-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    page = {"files": [{"url": "/f/uv-1.2.2-py3-none-manylinux_2_17_x86_64.whl"}, {"url": f"/f/{name}#sha256=x"}]}
    pages = {f"{INDEX}/uv/": json.dumps(page).encode(), f"https://index.example/f/{name}": wheel}
    serve(monkeypatch, fetch_uv, pages)
    monkeypatch.setattr(fetch_uv.sys, "prefix", str(tmp_path))
    (tmp_path / "bin").mkdir()

    status = fetch_uv.main(str(write_lock(tmp_path, hashlib.sha256(wheel).hexdigest())))

    assert status == 0
    assert (tmp_path / "bin" / "uv").read_bytes() == b"the program"
    assert (tmp_path / "bin" / "uv").stat().st_mode & 0o111


def test_a_wheel_with_another_hash_is_refused_and_not_unpacked(
    fetch_uv: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: bytes
) -> None:
    html = b'<a href="uv-1.2.3-py3-none-manylinux_2_17_x86_64.whl">uv</a>'
    serve(
        monkeypatch, fetch_uv, {f"{INDEX}/uv/": html, f"{INDEX}/uv/uv-1.2.3-py3-none-manylinux_2_17_x86_64.whl": wheel}
    )
    monkeypatch.setattr(fetch_uv.sys, "prefix", str(tmp_path))

    with pytest.raises(SystemExit, match="does not match any hash"):
        fetch_uv.main(str(write_lock(tmp_path, "0" * 64)))

    assert not (tmp_path / "bin").exists()


def test_a_machine_without_a_wheel_is_told_so(fetch_uv: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, fetch_uv, {f"{INDEX}/uv/": b'{"files": []}'})

    with pytest.raises(SystemExit, match=r"no wheel of uv 1\.2\.3 for this machine"):
        fetch_uv.find_wheel(INDEX, "1.2.3")


def test_the_index_comes_from_the_environment_before_pip_s_file(
    fetch_uv: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://file.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))

    from_file = fetch_uv.configured_index()
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example/simple")
    from_pip = fetch_uv.configured_index()
    monkeypatch.setenv("UV_DEFAULT_INDEX", "corporate=https://uv.example/simple")

    assert from_file == "https://file.example/simple"
    assert from_pip == "https://pip.example/simple"
    assert fetch_uv.configured_index() == "https://uv.example/simple"


def test_the_committed_lock_pins_uv_by_hash(fetch_uv: ModuleType, repo_root: Path) -> None:
    version, digests = fetch_uv.pinned(repo_root / "requirements" / "bootstrap.lock")

    assert version[0].isdigit()
    assert len(digests) > 10
