"""A task's spec from the options of ``parity task submit``, or from a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from parity_protocol.errors import BadField, NotFound, ParityError

__all__ = ["spec_of", "spec_options"]

F = TypeVar("F", bound=Callable[..., Any])

MAX_SPEC_FILE_BYTES = 1 << 20
_TIERS = ("none", "process", "bwrap", "docker", "docker+gvisor", "vm")
_PINNED_URL = re.compile(r"(?P<url>https://[^#]+)#sha256=(?P<sha256>[0-9a-f]{64})&size=(?P<size>[0-9]{1,13})")

_OPTIONS = (
    click.option("--spec", metavar="FILE", help="A task's JSON, of any kind; - is standard input."),
    click.option("--image", metavar="IMAGE", help="Run in a container of this image, such as debian:12."),
    click.option("--image-tar", metavar="CID", help="The image's `docker save` archive; else it is pulled."),
    click.option("--shell", is_flag=True, help="Let /bin/sh read the command, given as one text."),
    click.option("--title", default="", help="Shown in lists."),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="NAME=CID",
        help="Data, also as NAME=https://…#sha256=HEX&size=BYTES; repeat it for more.",
    ),
    click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment of the command; repeat it for more."),
    click.option("--workdir", metavar="PATH", help="Folder that it starts in."),
    click.option("--output", is_flag=True, help="Bring back the files that it writes to /output."),
    click.option("--output-max", metavar="SIZE", help="Most bytes of these files, such as 64m."),
    click.option("--egress", multiple=True, metavar="HOST", help="A host that it may reach; repeat it for more."),
    click.option("--egress-max", metavar="SIZE", help="Most bytes over the network, both ways."),
    click.option("--timeout", metavar="DURATION", help="Longest wall time, such as 5m."),
    click.option("--memory", metavar="SIZE", help="Memory it needs, such as 512m."),
    click.option("--disk", metavar="SIZE", help="Disk it needs, such as 1g."),
    click.option("--cpus", type=float, help="Processors it needs."),
    click.option("--pids", type=int, help="Processes and threads it needs."),
    click.option("--gpus", type=int, help="Graphics processors it needs."),
    click.option("--isolation", type=click.Choice(_TIERS), help="Least isolation that a node must have proved."),
    click.option("--attempts", type=click.IntRange(1, 10), help="Nodes that may try."),
)
_NAMES = (
    "image", "image_tar", "shell", "title", "inputs", "env", "workdir", "output", "output_max", "egress", "egress_max",
    "timeout", "memory", "disk", "cpus", "pids", "gpus", "isolation", "attempts",
)  # fmt: skip


def spec_options(command: F) -> F:
    """Add the options that describe a task."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def spec_of(given: dict[str, Any]) -> dict[str, Any] | str:
    """Return the spec that the options ask for: a document, or a file's exact text.

    Raises:
        UsageError: Options that do not go together.
        BadField: A value that no node could read; it is refused before it is paid for.
        NotFound: The file cannot be read.
    """
    if given["spec"]:
        if given["command"] or any(given[name] for name in _NAMES):
            raise click.UsageError("--spec says everything: leave out the command and its options")
        return _from_file(given["spec"])
    if not given["command"] and not given["image"]:
        raise click.UsageError(
            "give a command behind --, such as: -- echo hello; or --image IMAGE; or a task with --spec FILE"
        )
    spec = _container(given) if given["image"] else _command(given)
    spec.update(_shared(given))
    return spec


def _command(given: dict[str, Any]) -> dict[str, Any]:
    if given["image_tar"]:
        raise click.UsageError("--image-tar belongs to --image")
    if given["shell"]:
        return {"type": "command", "shell": True, "command": [" ".join(given["command"])]}
    return {"type": "command", "command": list(given["command"])}


def _container(given: dict[str, Any]) -> dict[str, Any]:
    if given["shell"]:
        raise click.UsageError("--shell is for commands; in a container say: -- sh -c '…'")
    spec: dict[str, Any] = {"type": "docker", "image": given["image"]}
    if given["command"]:
        spec["command"] = list(given["command"])
    if given["image_tar"]:
        spec["image_tar"] = {"kind": "cid", "name": "image", "cid": _cid("--image-tar", given["image_tar"])}
    return spec


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    from parity_protocol.quantities import parse_bytes, parse_duration

    spec: dict[str, Any] = {name: given[name] for name in ("title", "workdir") if given[name]}
    if given["inputs"]:
        spec["inputs"] = [_input(*_pair("--input", each)) for each in given["inputs"]]
    if given["env"]:
        spec["env"] = dict(_pair("--env", each) for each in given["env"])
    if given["timeout"]:
        spec["budgets"] = {"wall_time_s": parse_duration(given["timeout"]).total_seconds()}
    if given["output"] or given["output_max"]:
        spec["output"] = {"max_bytes": parse_bytes(given["output_max"])} if given["output_max"] else {}
    if given["egress"]:
        spec["egress"] = {"domains": list(given["egress"])}
        if given["egress_max"]:
            spec["egress"]["max_bytes"] = parse_bytes(given["egress_max"])
    elif given["egress_max"]:
        raise click.UsageError("--egress-max belongs to --egress")
    resources = {name: given[name] for name in ("cpus", "pids", "gpus") if given[name]}
    resources |= {f"{name}_bytes": parse_bytes(given[name]) for name in ("memory", "disk") if given[name]}
    if resources:
        spec["resources"] = resources
    if given["isolation"]:
        spec["requires"] = {"isolation": given["isolation"]}
    if given["attempts"]:
        spec["max_attempts"] = given["attempts"]
    return spec


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{option} {text!r}: expected NAME=…")
    return name, value


def _input(name: str, text: str) -> dict[str, Any]:
    if not text.startswith("https://"):
        return {"kind": "cid", "name": name, "cid": _cid(f"--input {name}", text)}
    pinned = _PINNED_URL.fullmatch(text)
    if pinned is None:
        raise BadField(
            f"--input {name}: a URL must end in #sha256=HEX&size=BYTES, so that what comes can be checked",
            hint="`sha256sum FILE` and `stat -c %s FILE` print both.",
            field="inputs",
        )
    return {
        "kind": "https",
        "name": name,
        "url": pinned["url"],
        "sha256": pinned["sha256"],
        "size": int(pinned["size"]),
    }


def _cid(option: str, text: str) -> str:
    """Return a CID as it was typed."""
    from parity_blobs import Cid

    try:
        Cid.parse(text)
    except ParityError as exc:
        raise BadField(
            f"{option}: {text[:80]!r} is not a CID: {exc.message}",
            hint="`parity data add FILE` stores a file and prints its CID.",
            field="inputs",
        ) from None
    return text


def _from_file(name: str) -> dict[str, Any] | str:
    """Return a file's text; a task in the Parity network's form is turned into ours."""
    from parity_protocol import strict_json
    from parity_protocol.parity_form import from_parity_form, is_parity_form

    text = _read(name)
    document = strict_json.loads(text.encode(), max_bytes=MAX_SPEC_FILE_BYTES)
    if isinstance(document, dict) and is_parity_form(document):
        return from_parity_form(document)
    return text


def _read(name: str) -> str:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_SPEC_FILE_BYTES)
        else:
            with Path(name).open("rb") as file:
                data = file.read(MAX_SPEC_FILE_BYTES)
        return data.decode("utf-8").strip()
    except OSError as exc:
        raise NotFound(f"--spec {name}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise BadField(f"--spec {name}: expected JSON text in UTF-8", field="spec") from exc
