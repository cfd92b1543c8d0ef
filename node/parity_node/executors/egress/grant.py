"""What a grant allows: exact names, subdomains by ``*.``, and the ports that it names."""

from __future__ import annotations

from dataclasses import dataclass

from parity_protocol.needs import Egress

__all__ = ["HTTPS_PORT", "PROXY_ADDRESS", "Grant", "egress_env"]

HTTPS_PORT = 443
PROXY_ADDRESS = ("127.0.0.1", 3128)  # inside the sandbox
_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@dataclass(frozen=True, slots=True)
class Grant:
    """The hosts that one task may reach."""

    domains: tuple[str, ...]

    @classmethod
    def of(cls, egress: Egress) -> Grant:
        """Return the grant of a task's spec, which has checked the form of every name."""
        return cls(egress.domains)

    def allows(self, host: str, port: int) -> bool:
        """Return whether a connection may go to ``host``, a name in lower case, at ``port``."""
        return any(_covers(rule, host, port) for rule in self.domains)

    def __str__(self) -> str:
        """Return the granted names for people."""
        return ", ".join(self.domains)


def egress_env() -> dict[str, str]:
    """Return the variables by which programs find the proxy, in the two spellings that are in use."""
    url = f"http://{PROXY_ADDRESS[0]}:{PROXY_ADDRESS[1]}"
    found = {**dict.fromkeys(_NAMES, url), "NO_PROXY": "localhost,127.0.0.1"}
    return found | {name.lower(): value for name, value in found.items()}


def _covers(rule: str, host: str, port: int) -> bool:
    name, _, digits = rule.partition(":")
    if port != int(digits or HTTPS_PORT):
        return False
    if name.startswith("*."):
        return host.endswith(name[1:]) and len(host) >= len(name)
    return host == name
