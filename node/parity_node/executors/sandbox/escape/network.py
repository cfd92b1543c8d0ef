"""Attempts by sockets: families that are no part of a network namespace, and addresses of the host."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from parity_node.executors.sandbox.escape.basics import (
    ASKED,
    CONNECT_S,
    REFUSALS,
    Attempt,
    NotApplicable,
    Outcome,
    call,
    name_of,
    note,
    on_surface,
    refused,
)

__all__ = ["ATTEMPTS"]

_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_LAST_FAMILY = 46
_VSOCK, _ALG, _NETLINK, _PACKET, _BLUETOOTH, _XDP, _TIPC, _CAN = _FAMILIES = (40, 38, 16, 17, 31, 44, 30, 29)
_NAMED = frozenset(_FAMILIES)  # each an attempt of its own
_SOCKET_TYPES = (1, 2, 3, 5)  # stream, datagram, raw, sequenced packets
_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPERM})
_TUNNELS = frozenset({"lo", "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"})
_CLOUDS = ("169.254.169.254", "169.254.170.2", "100.100.100.200")  # where clouds tell a machine its secrets


def _family(number: int) -> Outcome:
    """A _family is denied when no type of socket of it can be made."""
    reasons = set()
    for kind in _SOCKET_TYPES:
        try:
            fd = call("socket", number, kind, 0)
        except OSError as exc:
            reasons.add(name_of(exc.errno or 0))
            continue
        os.close(fd)
        return on_surface(f"a socket of family {number}, type {kind}")
    return "denied", ", ".join(sorted(reasons))


def _every_other_family() -> Outcome:
    for number in sorted({*range(_LAST_FAMILY + 1)} - _NAMED - {_AF_UNIX, _AF_INET, _AF_INET6}):
        found = _family(number)
        if found[0] != "denied":
            return found
    return "denied", "no other family up to 46"


def _family_with_high_bits() -> Outcome:
    """A filter may compare 64 bits where the kernel reads 32."""
    for number in (_VSOCK, _ALG, _PACKET):
        try:
            fd = call("socket", (1 << 32) | number, 1, 0)
        except OSError:
            continue
        os.close(fd)
        return on_surface(f"a socket of family {number} by a longer number")
    return "denied", "compared as the kernel does"


def _raw_socket() -> Outcome:
    for number, protocol in ((_AF_INET, 1), (_AF_INET, 255), (_AF_INET6, 58)):
        found = refused(_making(number, protocol), REFUSALS | {errno.EAFNOSUPPORT})
        if found[0] != "denied":
            return found
    return "denied", "EPERM"


def _making(family: int, protocol: int) -> Callable[[], None]:
    return lambda: os.close(call("socket", family, socket.SOCK_RAW, protocol))


def _routed(addresses: Iterable[str]) -> Outcome:
    """Ask whether an address has a route; connecting a datagram socket sends nothing."""
    reasons = set()
    for address in addresses:
        with socket.socket(_AF_INET6 if ":" in address else _AF_INET, socket.SOCK_DGRAM) as door:
            try:
                door.connect((address, 80))
            except OSError as exc:
                if exc.errno not in _UNREACHABLE:
                    return "escaped", f"{address}: {name_of(exc.errno or 0)}"
                reasons.add(name_of(exc.errno or 0))
                continue
        return "escaped", f"there is a route to {address}"
    if not reasons:
        raise NotApplicable("no such address on this machine")
    return "denied", ", ".join(sorted(reasons))


def _connected(services: Iterable[Any]) -> Outcome:
    """Try to reach services of the host that answer with a canary."""
    reasons = set()
    for address in services:
        is_path = isinstance(address, str)
        kind = _AF_UNIX if is_path else _AF_INET6 if ":" in address[0] else _AF_INET
        target = address if is_path else tuple(address)
        with socket.socket(kind, socket.SOCK_STREAM) as door:
            door.settimeout(CONNECT_S)
            try:
                door.connect(target)
                note(door.recv(4096))
            except OSError as exc:
                reasons.add(name_of(exc.errno) if exc.errno else type(exc).__name__)
                if isinstance(exc, TimeoutError):
                    return "escaped", f"{address}: packets leave the sandbox"
                continue
        return "escaped", f"{address!r} answers"
    if not reasons:
        raise NotApplicable("no such address on this machine")
    return "denied", ", ".join(sorted(reasons))


def _interfaces() -> Outcome:
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    names = {line.partition(":")[0].strip() for line in lines} - _TUNNELS
    return ("escaped", f"interfaces {', '.join(sorted(names))}") if names else ("denied", "only lo")


def _of(number: int) -> Callable[[], Outcome]:
    return lambda: _family(number)


ATTEMPTS: Final = {
    "socket.vsock": Attempt("make a socket towards a hypervisor", _of(_VSOCK)),
    "socket.alg": Attempt("make a socket of the kernel's cryptography", _of(_ALG)),
    "socket.netlink": Attempt("make a netlink socket", _of(_NETLINK)),
    "socket.packet": Attempt("make a packet socket", _of(_PACKET)),
    "socket.bluetooth": Attempt("make a Bluetooth socket", _of(_BLUETOOTH)),
    "socket.xdp": Attempt("make an XDP socket", _of(_XDP)),
    "socket.tipc": Attempt("make a TIPC socket", _of(_TIPC)),
    "socket.can": Attempt("make a CAN socket", _of(_CAN)),
    "socket.others": Attempt("make a socket of any other family", _every_other_family),
    "socket.high_bits": Attempt("make one by a number that is longer than the filter looks", _family_with_high_bits),
    "socket.raw": Attempt("make a raw socket", _raw_socket),
    "net.interfaces": Attempt("find a network interface", _interfaces),
    "net.metadata": Attempt("reach a cloud's metadata address", lambda: _routed(_CLOUDS)),
    "net.internet": Attempt("reach the internet", lambda: _routed(["1.1.1.1", "8.8.8.8"])),
    "net.internet6": Attempt("reach the internet by IPv6", lambda: _routed(["2606:4700:4700::1111", "fd00:ec2::254"])),
    "net.neighbours": Attempt(
        "reach the machine's own network",
        lambda: _routed([*ASKED["addresses"], "10.0.0.1", "172.17.0.1", "192.168.1.1"]),
    ),
    "net.host_loopback": Attempt("reach a service on the machine's loopback", lambda: _connected(ASKED["loopback"])),
    "net.host_address": Attempt("reach a service on the machine's address", lambda: _connected(ASKED["services"])),
    "net.abstract_socket": Attempt("reach an abstract unix socket", lambda: _connected(ASKED["abstract"])),
    "net.unix_socket": Attempt("reach a unix socket by its path", lambda: _connected(ASKED["unix"])),
}
