"""The two requests that the proxy understands: CONNECT, and a GET or the like with an ``http://`` URL."""

from __future__ import annotations

import re
from dataclasses import dataclass

from parity_blobs.public_address import is_host_name
from parity_node.executors.egress.grant import HTTPS_PORT
from parity_node.executors.egress.refusals import Refusal

__all__ = ["MAX_HEAD_BYTES", "ProxyRequest", "parse_request"]

MAX_HEAD_BYTES = 16_384
_MAX_HEADERS = 100

_CONNECT = re.compile(r"CONNECT (?P<authority>[!-~]{1,300}) HTTP/1\.[01]")
_ABSOLUTE = re.compile(
    r"(?P<method>GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (?P<scheme>[A-Za-z]{1,10})://(?P<authority>[^/?# ]{1,300})"
    r"(?P<path>(?:[/?][!-~]*)?) HTTP/1\.[01]"
)
_AUTHORITY = re.compile(r"(?P<host>[^:@\[\]]+|\[[^\[\]@]*\])(?::(?P<port>[1-9][0-9]{0,4}))?")
_HEADER = re.compile(r"(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(?P<value>[\t -~\x80-\xff]*)")
_LENGTH = re.compile(r"[0-9]{1,15}")
_NUMBERS = re.compile(r"\[.*\]|[0-9a-fx.]+", re.IGNORECASE)
_OF_THIS_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade", "host", "expect"),
    }
)


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """One request. ``head`` is what goes to the host before the body; empty for a tunnel."""

    host: str  # lower case
    port: int
    is_tunnel: bool
    head: bytes = b""
    body_bytes: int = 0


def parse_request(head: bytes) -> ProxyRequest:
    """Read the head of a request, without its empty line at the end.

    Raises:
        Refusal: Not such a request, or its host is written as an address.
    """
    lines = head.decode("latin-1").split("\r\n")
    connect = _CONNECT.fullmatch(lines[0])
    if connect is not None:
        host, port = _authority(connect["authority"], default=None)
        return ProxyRequest(host, port, is_tunnel=True)
    absolute = _ABSOLUTE.fullmatch(lines[0])
    if absolute is None:
        raise Refusal("egress.request", "", "expected CONNECT, or a method and a URL that begins with http://", 400)
    if absolute["scheme"].lower() != "http":
        raise Refusal("egress.request", "", "the proxy opens tunnels (CONNECT) for anything but http://", 400)
    host, port = _authority(absolute["authority"], default=80)
    if port == HTTPS_PORT:
        raise Refusal("egress.request", host, "port 443 is reached by a tunnel (CONNECT)", 400)
    headers, body_bytes = _headers(lines[1:], host)
    path = absolute["path"] or "/"
    first = f"{absolute['method']} {path if path.startswith('/') else '/' + path} HTTP/1.1"
    at = host if port == 80 else f"{host}:{port}"
    text = "\r\n".join([first, f"Host: {at}", *headers, "Connection: close", "", ""])
    return ProxyRequest(host, port, is_tunnel=False, head=text.encode("latin-1"), body_bytes=body_bytes)


def _authority(text: str, *, default: int | None) -> tuple[str, int]:
    found = _AUTHORITY.fullmatch(text)
    if found is None or (found["port"] is None and default is None):
        raise Refusal("egress.request", text, "expected HOST:PORT", 400)
    host, port = found["host"].lower(), int(found["port"] or default or 0)
    if not 0 < port < 65_536:
        raise Refusal("egress.request", host, "expected a port from 1 to 65535", 400)
    if not is_host_name(host):
        if _NUMBERS.fullmatch(host):
            raise Refusal("egress.address", host, "hosts are reached by name, never by address")
        raise Refusal("egress.request", host, "not a host name of two parts or more", 400)
    return host, port


def _headers(lines: list[str], host: str) -> tuple[list[str], int]:
    """Return the headers that go on, and the length of the body: one clear length, so that nothing hides behind it."""
    if len(lines) > _MAX_HEADERS:
        raise Refusal("egress.request", host, f"more than {_MAX_HEADERS} headers", 431)
    kept: list[str] = []
    lengths: list[str] = []
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise Refusal("egress.request", host, "a header is not valid", 400)
        name = found["name"].lower()
        if name == "transfer-encoding":
            raise Refusal("egress.request", host, "a body needs a Content-Length here", 411)
        if name == "content-length":
            lengths.append(found["value"].strip())
        if name not in _OF_THIS_HOP:
            kept.append(line)
    if len(lengths) > 1 or any(_LENGTH.fullmatch(text) is None for text in lengths):
        raise Refusal("egress.request", host, "expected one Content-Length", 400)
    return kept, int(lengths[0]) if lengths else 0
