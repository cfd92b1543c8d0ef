"""The guard for every connection to a host that somebody else named: only public addresses, and only the checked one.

A host name says nothing about where a connection ends: it may be a metadata service, the operator's router, or this very
machine, today or at the second lookup (DNS rebinding). So a name is resolved once, every answer has to be public, and
the connection goes to an address that was checked. Python's ``is_global`` does not decide: on 3.11 it takes NAT64 of a
metadata address, 6to4 of loopback and multicast for global.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple

from parity_protocol.errors import BadField, PolicyDenied, Unreachable

__all__ = [
    "MAX_ANSWERS",
    "HttpsTarget",
    "Resolver",
    "connect_public",
    "is_host_name",
    "is_own",
    "is_public",
    "parse_https_url",
    "resolve_public",
    "system_resolver",
]

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Takes a host name and a port, returns addresses as text; raises ``OSError`` when there are none."""

MAX_ANSWERS = 32  # of one lookup; more is nobody's honest zone
_LOOKUP_S = 10.0
_TRIED = 3  # addresses of one host that are tried in turn
_MAX_URL_CHARS = 4_096

_NOT_PUBLIC_4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared address space (RFC 6598), Alibaba's metadata in it
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host agent: a public number that is answered by the host
        "169.254.0.0/16",  # link local, most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocol assignments, Oracle's metadata in it
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")  # the local-use 64:ff9b:1::/48 is outside of global unicast
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_NOT_PUBLIC_6: Final = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # IETF protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address in disguise, deprecated by RFC 7526
        "3ffe::/16",  # 6bone, returned
        "3fff::/20",  # documentation
    )
)
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})  # bits 64 … 95: the rest is an IPv4 address of some intranet

_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:_?{_LABEL}\.)+{_LABEL}", re.IGNORECASE)
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)", re.IGNORECASE)  # what old resolvers read as a part of an address
_URL = re.compile(
    r"https://(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?(?:/[!\"$-\[\]-~]*)?"
)


class HttpsTarget(NamedTuple):
    """Where an https URL points."""

    host: str  # lower case; an IPv6 address without brackets
    port: int


def is_public(address: str) -> bool:
    """Return whether ``address`` is one that a stranger's connection may go to.

    Args:
        address: IPv4 or IPv6 in its usual text form. Short, octal, hexadecimal and scoped forms are not public.
    """
    try:
        return _is_public_4(IPv4Address(address))
    except AddressValueError:
        pass
    try:
        found = IPv6Address(address)
    except AddressValueError:
        return False
    if found.scope_id is not None:
        return False
    if found in _NAT64 or found in _MAPPED:
        return _is_public_4(IPv4Address(int(found) & 0xFFFF_FFFF))
    if found not in _GLOBAL_UNICAST or any(found in network for network in _NOT_PUBLIC_6):
        return False
    return (int(found) >> 32) & 0xFFFF_FFFF not in _ISATAP


def is_own(address: str) -> bool:
    """Return whether ``address`` belongs to this machine, whose public address may lie inside of its firewall.

    The kernel says which source it would use; nothing is sent.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return bool(probe.getsockname()[0] == probe.getpeername()[0])
    except OSError:
        return False


def is_host_name(text: str) -> bool:
    """Return whether ``text`` is a DNS name of two labels or more that nothing could read as an address."""
    last = text.rpartition(".")[2]
    return len(text) <= 253 and _HOST.fullmatch(text) is not None and _NUMBER.fullmatch(last) is None


def parse_https_url(url: str) -> HttpsTarget:
    """Return the host and port of an https URL of the plain kind, which every parser reads alike.

    Raises:
        BadField: Another scheme, a user name, a character outside ASCII, an address in a form that only some programs
            understand, a fragment, or a port out of range.
    """
    found = _URL.fullmatch(url) if len(url) <= _MAX_URL_CHARS else None
    if found is None:
        raise BadField(f"expected https://HOST[:PORT]/PATH in ASCII, without a user name: {url[:200]!r}", field="url")
    host, port = found["host"].lower(), int(found["port"] or 443)
    is_bracketed = host.startswith("[")
    host = host.strip("[]")
    if is_bracketed != (":" in host) or not (is_host_name(host) or _is_address(host)):
        raise BadField(f"not a host name or address: {host!r}", field="url")
    if not 0 < port < 65_536:
        raise BadField(f"the port must be from 1 to 65535, got {port}", field="url")
    return HttpsTarget(host, port)


async def system_resolver(host: str, port: int) -> Sequence[str]:
    """Ask the machine's resolver, with the name taken as complete: no search domain is tried."""
    absolute = host if _is_address(host) else f"{host}."
    found = await asyncio.get_running_loop().getaddrinfo(absolute, port, type=socket.SOCK_STREAM)
    # A scope (``%2``) is part of the text: such an address is local, and is refused.
    return list(dict.fromkeys(socket.getnameinfo(each[4], socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0] for each in found))  # fmt: skip


async def resolve_public(
    host: str, port: int, *, resolver: Resolver = system_resolver, allow: Callable[[str], bool] = is_public
) -> list[str]:
    """Return the addresses of ``host``, all of them public. Connect to one of these, not to the name.

    Args:
        allow: What counts as public; tests give a wider one.

    Raises:
        PolicyDenied: The host is no name or address, or one of its addresses is not public.
        Unreachable: It has no address, or the lookup took too long.
    """
    if _is_address(host):
        answers: Sequence[str] = [host]
    elif is_host_name(host):
        answers = await _lookup(host, port, resolver)
    else:
        raise PolicyDenied(f"not a host name: {host[:200]!r}")
    if not answers:
        raise Unreachable(f"{host} has no address")
    if len(answers) > MAX_ANSWERS:
        raise PolicyDenied(f"{host} has more than {MAX_ANSWERS} addresses")
    for address in answers:
        if not allow(address):
            raise PolicyDenied(f"{host} is at {address}, which is not a public address")
    return list(answers)


async def connect_public(
    host: str,
    port: int,
    *,
    resolver: Resolver = system_resolver,
    allow: Callable[[str], bool] | None = None,
    attempt_s: float = 10.0,
) -> socket.socket:
    """Connect to a checked address of ``host`` and return the socket, non-blocking.

    Args:
        allow: What counts as public; by default a public address that is not this machine's own.
        attempt_s: For one address; three are tried.

    Raises:
        PolicyDenied: As ``resolve_public``.
        Unreachable: As ``resolve_public``, or nothing answers.
    """
    addresses = await resolve_public(host, port, resolver=resolver, allow=allow or _is_strangers)
    loop = asyncio.get_running_loop()
    problem: OSError | None = None
    for address in addresses[:_TRIED]:
        sock: socket.socket | None = None
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            sock.settimeout(0)  # non-blocking
            await asyncio.wait_for(loop.sock_connect(sock, (address, port)), attempt_s)
        except OSError as exc:  # a time-out is one
            if sock is not None:
                sock.close()
            problem = exc
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        else:
            return sock
    raise Unreachable(f"{host}:{port} does not answer: {str(problem) or 'no answer in time'}") from problem


async def _lookup(host: str, port: int, resolver: Resolver) -> Sequence[str]:
    try:
        return await asyncio.wait_for(resolver(host, port), _LOOKUP_S)
    except (OSError, UnicodeError) as exc:
        raise Unreachable(f"{host} cannot be resolved: {str(exc) or 'no answer in time'}") from exc


def _is_strangers(address: str) -> bool:
    return is_public(address) and not is_own(address)


def _is_public_4(address: IPv4Address) -> bool:
    return not any(address in network for network in _NOT_PUBLIC_4)


def _is_address(text: str) -> bool:
    for kind in (IPv4Address, IPv6Address):
        try:
            kind(text)
        except AddressValueError:
            continue
        return "%" not in text
    return False
