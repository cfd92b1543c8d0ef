"""The app bundle and what market and node agree on."""

from __future__ import annotations

import ast
import zipfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest

from parity_fl.engines import flower
from parity_fl.engines.flower import Fleet, bundle, bundle_digest
from parity_fl.engines.flower.bundle import bundle as uncached
from parity_protocol.errors import BadField, Unavailable

PEM = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
FLEET = Fleet("1.41.0", "127.0.0.1:9000", PEM, "a" * 64)


def test_a_bundle_is_the_same_bytes_whenever_it_is_made():
    assert uncached.__wrapped__() == bundle()
    assert sha256(bundle()).hexdigest() == bundle_digest()


def test_a_bundle_lists_the_digest_and_bits_of_every_file():
    with zipfile.ZipFile(BytesIO(bundle())) as archive:
        lines = archive.read(".info/CONTENT").decode().splitlines()
        names = {line.split(",")[0] for line in lines}
        for line in lines:
            name, digest, bits = line.split(",")
            data = archive.read(name)
            assert (digest, int(bits)) == (sha256(data).hexdigest(), 8 * len(data))

        assert names == set(archive.namelist()) - {".info/CONTENT"}


def test_every_source_of_the_app_is_in_the_bundle():
    app = Path(flower.__file__).parent / "app"
    sources = {str(path.relative_to(app)) for path in app.rglob("*") if path.suffix in {".py", ".toml"}}

    with zipfile.ZipFile(BytesIO(bundle())) as archive:
        assert sources == set(archive.namelist()) - {".info/CONTENT"}


@pytest.mark.parametrize("folder", ["app/parity_flower", "programs"])
def test_what_runs_in_the_other_environment_imports_nothing_of_ours(folder):
    for path in (Path(flower.__file__).parent / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []

            assert not [name for name in names if name.startswith("parity_")], path


def test_a_fleet_is_read_back_as_it_was_written():
    assert Fleet.from_dict(FLEET.to_dict()) == FLEET
    assert (FLEET.host, FLEET.port) == ("127.0.0.1", 9000)
    assert Fleet.from_dict({**FLEET.to_dict(), "superlink": "[::1]:80"}).host == "::1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("superlink", "nowhere"),
        ("superlink", "host:0"),
        ("superlink", "host:70000"),
        ("superlink", "a b:80"),
        ("superlink", "--host:80\n"),
        ("flwr_version", "1.41"),
        ("root_ca_pem", "nothing"),
        ("root_ca_pem", PEM + "x" * 5000),
        ("bundle_sha256", "*"),
        ("bundle_sha256", None),
    ],
)
def test_a_fleet_with_a_wrong_member_is_refused(name, value):
    with pytest.raises(BadField, match=name):
        Fleet.from_dict({**FLEET.to_dict(), name: value})


def test_a_fleet_with_an_unknown_member_is_refused():
    with pytest.raises(BadField, match="exactly"):
        Fleet.from_dict({**FLEET.to_dict(), "insecure": True})


def test_an_engine_that_is_not_installed_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PARITY_ENGINES", str(tmp_path))

    assert not flower.is_installed()
    with pytest.raises(Unavailable, match="parity fl engine install flower"):
        flower.flower_python()


def test_engines_are_where_the_service_that_uses_them_can_see_them(tmp_path):
    home = {"PARITY_HOME": str(tmp_path), "XDG_DATA_HOME": "/data"}

    assert flower.engines_home({**home, "PARITY_ENGINES": "/engines"}) == Path("/engines")
    assert flower.engines_home(home) == tmp_path / "engines"
    assert flower.engines_home({"XDG_DATA_HOME": "/data"}) == Path("/data/parity-node/engines")


def test_an_environment_without_its_mark_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("PARITY_ENGINES", str(tmp_path))
    folder = flower.engine_folder()
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    assert not flower.is_installed()

    (folder / flower.ENGINE_FILE).write_text("{}")

    assert flower.flower_python() == folder / "bin" / "python"


def test_flower_processes_tell_nobody_and_install_nothing(tmp_path):
    env = flower.engine_env(tmp_path, python=tmp_path / "bin" / "python")

    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert Path(env["FLWR_HOME"]).is_relative_to(tmp_path)


def test_the_list_of_packages_has_a_hash_for_each():
    text = flower.lock_file().read_text()

    assert "flwr==1.41.0" in text
    assert text.count("==") <= text.count("--hash=sha256:")
