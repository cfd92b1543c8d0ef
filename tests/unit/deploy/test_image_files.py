"""What Dockerfile and compose.yaml must never lose; that they work was seen on a real engine."""

from __future__ import annotations

import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are not among the locked tools

from parity_market.settings import MarketSettings
from parity_node.settings import NodeSettings

OURS = ("net", "chain", "set-up-market", "market", "set-up-node", "node")
LASTING = ("chain", "market", "node", "kubo", "ollama")


@pytest.fixture(scope="module")
def compose(repo_root: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((repo_root / "compose.yaml").read_text())
    return found


@pytest.fixture(scope="module")
def dockerfile(repo_root: Path) -> str:
    return re.sub(r"\\\n\s*", " ", (repo_root / "Dockerfile").read_text())


def test_every_service_is_unprivileged_bounded_and_read_only(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        user = str(service["user"]).partition(":")[0]
        assert user not in ("0", "root", ""), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"pids_limit", "mem_limit", "cpus", "logging"} <= set(service), name
        assert not {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"} & set(service), name


def test_health_checks_are_such_that_engine_20_knows(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "start_interval" not in service["healthcheck"], name
    assert "test" in compose["services"]["net"]["healthcheck"]  # `up --wait` fails without one


def test_whatever_the_wheel_is_made_of_reaches_the_image(repo_root: Path, dockerfile: str) -> None:
    wheel = tomllib.loads((repo_root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = {line.split()[1] for line in dockerfile.splitlines() if line.startswith("COPY ") and "--" not in line}
    kept = {line[1:] for line in (repo_root / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    for source in (*wheel.get("force-include", {}), *wheel["packages"]):
        for where in (copied, kept):
            assert any(source == each or source.startswith(f"{each}/") for each in where), source


def test_no_service_gets_the_engines_socket_or_a_folder_of_the_machine(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or source == "./deploy/kubo.sh", (name, volume)
            assert "docker.sock" not in volume


def test_one_port_is_published_and_on_loopback_only(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]

    assert published == ["127.0.0.1:8443:8443"]
    assert compose["services"]["net"]["ports"] == published


def test_the_network_is_held_by_what_cannot_fail(compose: dict[str, Any]) -> None:
    services = dict(compose["services"])
    holder = services.pop("net")

    assert {service["network_mode"] for service in services.values()} == {"service:net", "none"}
    assert (holder["entrypoint"], holder["command"]) == (["sleep"], ["infinity"])
    assert holder["restart"] == "unless-stopped"


def test_what_lasts_has_a_health_check_and_comes_back(compose: dict[str, Any]) -> None:
    for name in LASTING:
        service = compose["services"][name]
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert {"interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"]), name


def test_each_part_waits_until_what_it_needs_works(compose: dict[str, Any]) -> None:
    waits = {
        name: {on: how["condition"] for on, how in service.get("depends_on", {}).items()}
        for name, service in compose["services"].items()
    }

    assert waits["set-up-market"] == {"chain": "service_healthy"}
    assert waits["market"] == {"set-up-market": "service_completed_successfully"}
    assert waits["set-up-node"] == {"market": "service_healthy"}
    assert waits["node"] == {"set-up-node": "service_completed_successfully"}


def test_the_passphrase_is_a_file_that_only_the_set_up_sees(compose: dict[str, Any]) -> None:
    holders = [name for name, service in compose["services"].items() if service.get("secrets")]

    assert holders == ["set-up-node"]
    assert set(compose["secrets"]["node-passphrase"]) == {"file"}
    for service in compose["services"].values():
        assert not any("KEY" in key or key.endswith("PASSPHRASE") for key in service.get("environment") or {})


def test_every_setting_in_it_exists_and_is_right(compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for model, name in ((NodeSettings, "node"), (MarketSettings, "market")):
        environment = compose["services"][name]["environment"]
        own = {key: value for key, value in environment.items() if not key.startswith("PARITY_")}
        for key, value in own.items():
            monkeypatch.setenv(key, value)
        assert {key.lower() for key in own} <= set(model.model_fields), name
        model(_env_file=None)
        for key in own:
            monkeypatch.delenv(key)


def test_images_of_others_name_a_version(compose: dict[str, Any]) -> None:
    for name in ("kubo", "ollama"):
        assert re.fullmatch(r"\$\{\w+:-[a-z/]+:v?\d+\.\d+\.\d+\}", compose["services"][name]["image"]), name


def test_the_image_is_built_from_locked_packages_and_runs_as_nobody_special(dockerfile: str) -> None:
    build, run = dockerfile.split("\nFROM ${BASE}\n")

    assert "--require-hashes --no-deps --only-binary :all: -r requirements/default.lock" in build
    assert "--no-build-isolation --no-index ." in build
    assert "pip uninstall --yes hatchling editables pip setuptools" in build
    assert not re.search(r"apt-get|apk |curl|wget|\bADD\b", dockerfile.partition("ARG BASE")[2])
    assert "\nUSER 10001:10001\n" in run
    assert 'ENTRYPOINT ["parity"]' in run
    assert "HEALTHCHECK" in run
    assert run.count("COPY --from=build") == 1


def test_the_base_is_the_builders_choice_and_no_digest_is_invented(dockerfile: str) -> None:
    assert re.search(r"^ARG BASE=python:3\.1[123]-slim-\w+$", dockerfile, re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == ["${BASE}", "${BASE}"]


def test_everything_that_the_image_copies_is_let_through(repo_root: Path, dockerfile: str) -> None:
    kept = {line[1:] for line in (repo_root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]
    ]

    for path in copied:
        assert (repo_root / path).exists(), path
        assert any(path == each or path.startswith(f"{each}/") for each in kept), path
    assert not kept & {".git", ".env", "secrets", "tests"}


def test_the_scripts_of_the_image_can_be_run(repo_root: Path) -> None:
    for name in ("health.py", "set-up-market.sh", "set-up-node.sh", "kubo.sh"):
        assert (repo_root / "deploy" / name).stat().st_mode & 0o111, name


@pytest.mark.parametrize(
    "arguments",
    [[], ["http://example.org/"], ["ftp://127.0.0.1/"], ["--rpc"], ["file:///etc/passwd"], ["http://127.0.0.1.evil/"]],
)
def test_the_health_check_asks_loopback_only(arguments: list[str], health: ModuleType) -> None:
    assert health.main(arguments) == 2


@pytest.fixture(scope="module")
def health(repo_root: Path) -> ModuleType:
    spec = spec_from_file_location("parity_health", repo_root / "deploy/health.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
