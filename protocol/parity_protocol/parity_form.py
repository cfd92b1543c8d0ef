"""A task as the Parity network writes it (parity-protocol.md §1.3, §2.7), read as one of our specs.

``{"type": "docker", "config": {"image_name": …}, "environment": {"type": "docker", "config": {…}}}`` becomes a
``DockerSpec``'s document; ``config.command`` a ``CommandSpec``'s. Nothing is guessed: what has no meaning here is refused
by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from parity_protocol.errors import BadField
from parity_protocol.quantities import parse_bytes, parse_duration

__all__ = ["from_parity_form", "is_parity_form"]

_OWN = frozenset({"config", "environment", "image", "command", "title", "description", "type", "image_hash"})
_KEPT = frozenset({"inputs", "budgets", "resources", "requires", "max_attempts", "egress", "output", "image_tar"})
_IGNORED = frozenset(
    {"id", "reward", "status", "creator_id", "creator_address", "nonce", "command_hash", "created_at", "updated_at"}
)
_MARKS = frozenset({"config", "environment"})
_DEFAULT_TIMEOUT_S = 300.0  # of a command whose ``timeout_seconds`` is 0
_CID_URL = re.compile(r"/(?:ipfs|storage/download)/([A-Za-z0-9]{46,128})/?$")


def is_parity_form(document: Mapping[str, Any]) -> bool:
    """Return whether a task's document is in the Parity network's form, not ours."""
    return bool(_MARKS & document.keys())


def from_parity_form(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return our spec's document for a Parity task; ``parse_spec`` must still check it.

    Args:
        document: A JSON object. Members that say nothing about the work (``id``, ``reward``, ``nonce`` …) are left out.

    Raises:
        BadField: A member is unknown, of another type, or has no meaning here; ``field`` names it.
    """
    _refuse_unknown(document, _OWN | _KEPT | _IGNORED, "")
    kind = document.get("type") or ("docker" if document.get("image") or "image_name" in _config(document) else "")
    spec: dict[str, Any] = {"type": kind}
    spec.update({name: document[name] for name in ("title", "description", *sorted(_KEPT)) if name in document})
    if kind == "docker":
        return {**spec, **_docker(document)}
    if kind == "command":
        return {**spec, **_command(document)}
    raise BadField(f"type must be docker or command in this form, got {str(kind)[:40]!r}", field="type")


def _command(document: Mapping[str, Any]) -> dict[str, Any]:
    config = _config(document)
    _refuse_unknown(config, {"command", "working_dir", "environment", "timeout_seconds", "resources"}, "config.")
    command = config.get("command", document.get("command"))
    if not isinstance(command, str | list):
        raise BadField("config.command must be a text or a list of texts", field="config.command")
    found: dict[str, Any] = {"command": command}
    if config.get("working_dir"):
        found["workdir"] = config["working_dir"]
    environment = config.get("environment")
    if environment:
        if not isinstance(environment, dict):
            raise BadField("config.environment must be an object of texts", field="config.environment")
        found["env"] = environment
    timeout = config.get("timeout_seconds", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout < 0:
        raise BadField("config.timeout_seconds must be a number of seconds", field="config.timeout_seconds")
    found["budgets"] = {"wall_time_s": float(timeout or _DEFAULT_TIMEOUT_S)}
    return {**found, **_resources(config.get("resources"), found["budgets"])}


def _docker(document: Mapping[str, Any]) -> dict[str, Any]:
    config = _config(document)
    _refuse_unknown(
        config, {"image_name", "docker_image_url", "file_url", "env", "command", "workdir", "resources"}, "config."
    )
    inner = _environment(document)
    _refuse_unknown(inner, {"workdir", "env", "command"}, "environment.config.")
    image = config.get("image_name") or document.get("image")
    if not isinstance(image, str):
        raise BadField("config.image_name must name an image", field="config.image_name")
    found: dict[str, Any] = {"image": image}
    url = config.get("docker_image_url") or config.get("file_url")
    if url:
        found["image_tar"] = _image_tar(url)
    command = inner.get("command") or config.get("command") or document.get("command")
    if command:
        found["command"] = command.split() if isinstance(command, str) else command
    workdir = inner.get("workdir") or config.get("workdir")
    if workdir:
        found["workdir"] = workdir
    env = inner.get("env") or config.get("env")
    if env:
        found["env"] = _env(env)
    return {**found, **_resources(config.get("resources"), {})}


def _image_tar(url: object) -> dict[str, Any]:
    """Return the input that a ``docker_image_url`` names: content, by its CID, wherever the URL points."""
    match = _CID_URL.search(url) if isinstance(url, str) else None
    if match is None:
        raise BadField(
            "config.docker_image_url must end in /ipfs/CID or /storage/download/CID, so that its bytes can be checked",
            hint="Give the archive as image_tar with its url, sha256 and size instead.",
            field="config.docker_image_url",
        )
    return {"kind": "cid", "name": "image", "cid": match[1]}


def _env(env: object) -> dict[str, Any]:
    if isinstance(env, dict):
        return env
    if not isinstance(env, list):
        raise BadField("env must be a list such as ['NAME=value']", field="environment.config.env")
    found = {}
    for index, item in enumerate(env):
        name, equals, value = item.partition("=") if isinstance(item, str) else ("", "", "")
        if not equals:  # Docker's command line would copy the node's own variable of that name
            raise BadField(
                f"environment.config.env.{index} must be NAME=value", field=f"environment.config.env.{index}"
            )
        found[name] = value
    return found


def _resources(given: object, budgets: dict[str, Any]) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise BadField("config.resources must be an object", field="config.resources")
    _refuse_unknown(given, {"cpu", "cpus", "memory", "pids", "disk", "timeout", "gpu"}, "config.resources.")
    resources: dict[str, Any] = {}
    for theirs, ours in (("cpu", "cpus"), ("cpus", "cpus"), ("pids", "pids"), ("gpu", "gpus")):
        if theirs in given:
            resources[ours] = given[theirs]
    for theirs, ours in (("memory", "memory_bytes"), ("disk", "disk_bytes")):
        if theirs in given:
            resources[ours] = parse_bytes(given[theirs])
    found: dict[str, Any] = {"resources": resources} if resources else {}
    if "timeout" in given:
        found["budgets"] = {**budgets, "wall_time_s": parse_duration(given["timeout"]).total_seconds()}
    return found


def _config(document: Mapping[str, Any]) -> dict[str, Any]:
    config = document.get("config") or {}
    if not isinstance(config, dict):
        raise BadField("config must be an object", field="config")
    return config


def _environment(document: Mapping[str, Any]) -> dict[str, Any]:
    environment = document.get("environment") or {}
    if not isinstance(environment, dict):
        raise BadField("environment must be an object", field="environment")
    _refuse_unknown(environment, {"type", "config"}, "environment.")
    if environment.get("type", "docker") != "docker":
        raise BadField("environment.type must be docker", field="environment.type")
    config = environment.get("config") or {}
    if not isinstance(config, dict):
        raise BadField("environment.config must be an object", field="environment.config")
    return config


def _refuse_unknown(given: Mapping[str, Any], known: set[str] | frozenset[str], prefix: str) -> None:
    for name in given:
        if name not in known:
            raise BadField(f"{prefix}{str(name)[:64]} has no meaning here", field=f"{prefix}{str(name)[:64]}")
