"""What a manifest says of a session's SuperLink: the node talks to this one, by this root certificate, for this bundle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from parity_protocol.errors import BadField

__all__ = ["Fleet", "is_flower"]

_MEMBERS: Final = ("flwr_version", "superlink", "root_ca_pem", "bundle_sha256")
_VERSION: Final = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}")
_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:]{2,45}\]|[A-Za-z0-9.-]{1,253}):([0-9]{1,5})")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MAX_PEM_CHARS: Final = 4096


@dataclass(frozen=True, slots=True)
class Fleet:
    """A session's SuperLink, as market and nodes agree on it.

    Attributes:
        flwr_version: That both sides must run, ``1.41.0``.
        superlink: ``host:port``.
        root_ca_pem: The session's own authority; nothing else vouches for the SuperLink.
        bundle_sha256: Of the app that nodes are sent, hex.
    """

    flwr_version: str
    superlink: str
    root_ca_pem: str
    bundle_sha256: str

    @property
    def host(self) -> str:
        """The SuperLink's host, without brackets."""
        return self.superlink.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The SuperLink's port."""
        return int(self.superlink.rpartition(":")[2])

    def to_dict(self) -> dict[str, object]:
        """Return JSON-ready members; ``from_dict`` reads them back to an equal value."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: object) -> Fleet:
        """Read what somebody else wrote.

        Raises:
            BadField: A member is missing, unknown or wrong.
        """
        if not isinstance(raw, dict) or set(raw) != set(_MEMBERS):
            raise BadField(f"a fleet must have exactly {', '.join(_MEMBERS)}", field="plan.flower")
        version, superlink, pem, digest = (raw[name] for name in _MEMBERS)
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise BadField("flwr_version must be like 1.41.0", field="plan.flower.flwr_version")
        found = _ADDRESS.fullmatch(superlink) if isinstance(superlink, str) else None
        if found is None or not 0 < int(found[2]) < 65_536:
            raise BadField("superlink must be host:port", field="plan.flower.superlink")
        if not isinstance(pem, str) or len(pem) > _MAX_PEM_CHARS or "BEGIN CERTIFICATE" not in pem:
            raise BadField("root_ca_pem must be one certificate", field="plan.flower.root_ca_pem")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise BadField("bundle_sha256 must be 64 lower-case hex characters", field="plan.flower.bundle_sha256")
        return cls(version, superlink, pem, digest)


def is_flower(session: Mapping[str, object]) -> bool:
    """Return whether a submitted session wants Flower to carry its rounds."""
    return session.get("engine") == "flower"
