"""What a task may ask for: inputs, limits, a node's qualities, an image, the network, a folder for its output."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from parity_protocol.ids import WireSha256
from parity_protocol.isolation import IsolationTier
from parity_protocol.wire import Request

__all__ = [
    "Argument",
    "Budgets",
    "CidInput",
    "Egress",
    "EnvName",
    "HttpsInput",
    "ImageReference",
    "ImageTar",
    "InputSpec",
    "Name",
    "OutputFolder",
    "Requirements",
    "Resources",
    "ShardInput",
    "Workdir",
    "no_nul",
    "split_image",
]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
Name = Annotated[str, StringConstraints(pattern=_NAME, max_length=128)]


def no_nul(text: str) -> str:
    """Return ``text``; a NUL character in it is a ``ValueError``."""
    if "\x00" in text:
        raise ValueError("must not contain a NUL character")
    return text


Argument = Annotated[str, StringConstraints(max_length=32_768), AfterValidator(no_nul)]
Workdir = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=4096)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$", max_length=128)]


class CidInput(Request):
    """Data by content identifier; every block is verified."""

    kind: Literal["cid"] = "cid"
    name: Name = "data"
    cid: Annotated[str, StringConstraints(min_length=2, max_length=128)]
    max_bytes: Annotated[int, Field(gt=0, le=1 << 40)] = 1 << 30


class HttpsInput(Request):
    """Data by URL; the digest and size are part of the signed spec."""

    kind: Literal["https"] = "https"
    name: Name = "data"
    url: Annotated[str, StringConstraints(pattern=r"^https://", max_length=4096)]
    sha256: WireSha256
    size: Annotated[int, Field(ge=0, le=1 << 40)]


class ShardInput(Request):
    """Data that the node already has, by the name its operator gave it."""

    kind: Literal["shard"] = "shard"
    name: Name = "data"
    shard: Name


ImageTar = Annotated[CidInput | HttpsInput, Field(discriminator="kind")]
InputSpec = Annotated[CidInput | HttpsInput | ShardInput, Field(discriminator="kind")]


class Budgets(Request):
    """What one execution may use up; None is the node's own limit."""

    wall_time_s: Annotated[float, Field(gt=0, le=604_800)] = 900.0
    tokens_max: Annotated[int, Field(gt=0, le=10**9)] | None = None
    epochs_max: Annotated[int, Field(gt=0, le=10**6)] | None = None


class Resources(Request):
    """What one execution needs; the node's own limits are never exceeded."""

    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    memory_bytes: Annotated[int, Field(ge=16 << 20, le=1 << 44)] = 512 << 20
    disk_bytes: Annotated[int, Field(ge=0, le=1 << 44)] = 256 << 20
    pids: Annotated[int, Field(ge=1, le=65_536)] = 128
    gpus: Annotated[int, Field(ge=0, le=16)] = 0


class Requirements(Request):
    """What a node must be to get this task."""

    isolation: IsolationTier = IsolationTier.NONE
    min_node_version: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,5}\.[0-9]{1,5}\.[0-9]{1,5}$")] | None = None


# -- what is executed, and what it may reach -----------------------------------------------------------------------

_DOMAIN = r"^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?(:[1-9][0-9]{0,4})?$"
_REGISTRY = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::[0-9]+)?/)?"
_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = (
    rf"(?P<name>{_REGISTRY}{_PATH}(?:/{_PATH})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)

Domain = Annotated[str, StringConstraints(pattern=_DOMAIN, max_length=253)]
"""A host name such as ``pypi.org``, ``*.example.org`` (its subdomains) or ``example.org:8443``; the port is 443."""


def _check_reference(text: str) -> str:
    if re.fullmatch(_REFERENCE, text) is None:
        raise ValueError("expected an image such as 'debian:12' or 'ghcr.io/me/tool@sha256:…'")
    return text


ImageReference = Annotated[str, StringConstraints(min_length=1, max_length=512), AfterValidator(_check_reference)]


def split_image(reference: str) -> tuple[str, str, str]:
    """Return name, tag and digest of an image reference; a part that is not there is empty.

    Raises:
        ValueError: Not an image reference.
    """
    found = re.fullmatch(_REFERENCE, reference)
    if found is None:
        raise ValueError("not an image reference")
    return found["name"], found["tag"] or "", found["digest"] or ""


class Egress(Request):
    """The only hosts that a task may reach, through the node's proxy. Without it there is no network at all."""

    domains: Annotated[tuple[Domain, ...], Field(min_length=1, max_length=32)]
    max_bytes: Annotated[int, Field(gt=0, le=1 << 40)] = 64 << 20  # both directions together


class OutputFolder(Request):
    """A folder, ``/output``, whose files become part of the result.

    The result is then a folder too: ``output.log`` is what the task printed, ``files/`` is this folder.
    """

    max_bytes: Annotated[int, Field(gt=0, le=1 << 40)] = 64 << 20
    max_files: Annotated[int, Field(gt=0, le=10_000)] = 1_000
