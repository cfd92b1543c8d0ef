from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_node.executors.egress.refusals import Refusal
from parity_node.executors.egress.request import ProxyRequest, parse_request


def refused(head: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse_request(head)
    return caught.value


def test_connect_names_a_host_and_a_port() -> None:
    assert parse_request(b"CONNECT Example.ORG:443 HTTP/1.1\r\nHost: other") == ProxyRequest(
        "example.org", 443, is_tunnel=True
    )


@pytest.mark.parametrize(
    "authority",
    [
        *(
            "127.0.0.1:443",
            "1.1.1.1:443",
            "[::1]:443",
            "[2606:4700::1111]:443",
            "2130706433:443",
            "0x7f.1:443",
            "127.1:80",
        ),
        *("0177.0.0.1:443", "[::ffff:1.2.3.4]:443"),
    ],
)
def test_a_tunnel_to_an_address_is_refused_by_name(authority: str) -> None:
    assert refused(f"CONNECT {authority} HTTP/1.1".encode()).rule == "egress.address"


@pytest.mark.parametrize(
    "authority",
    [
        *("example.org", "example.org:", "example.org:0", "example.org:65536", "example.org:0443", "localhost:443"),
        *(
            "example.org.:443",
            "user@example.org:443",
            "example.org:443:443",
            "http://example.org:443",
            "*.example.org:443",
        ),
    ],
)
def test_a_tunnel_needs_a_plain_host_and_port(authority: str) -> None:
    assert refused(f"CONNECT {authority} HTTP/1.1".encode()).rule == "egress.request"


@pytest.mark.parametrize(
    "line",
    [
        *("GET / HTTP/1.1", "GET https://example.org/ HTTP/1.1", "GET ftp://example.org/ HTTP/1.1", "", "CONNECT"),
        *(
            "GET http://example.org:443/ HTTP/1.1",
            "GET http://example.org/ HTTP/2",
            "TRACE http://example.org/ HTTP/1.1",
        ),
        *(
            "GET http://u@example.org/ HTTP/1.1",
            "GET  http://example.org/ HTTP/1.1",
            "CONNECT example.org:443 HTTP/1.1 ",
        ),
    ],
)
def test_other_requests_are_refused(line: str) -> None:
    assert refused(line.encode()).status == 400


def test_a_plain_request_goes_on_in_origin_form_with_a_host_of_our_own() -> None:
    head = (
        b"GET http://example.org/a?b HTTP/1.1\r\nHost: other.example\r\nProxy-Connection: keep-alive\r\n"
        b"Proxy-Authorization: Basic eDp5\r\nConnection: keep-alive\r\nX-Mine: 1"
    )

    found = parse_request(head)

    assert found == ProxyRequest(
        "example.org",
        80,
        is_tunnel=False,
        head=b"GET /a?b HTTP/1.1\r\nHost: example.org\r\nX-Mine: 1\r\nConnection: close\r\n\r\n",
    )


def test_a_port_of_a_plain_request_stays_in_its_host_header() -> None:
    assert b"\r\nHost: example.org:8080\r\n" in parse_request(b"GET http://example.org:8080 HTTP/1.1").head


def test_a_body_is_bounded_by_its_length() -> None:
    assert parse_request(b"POST http://example.org/ HTTP/1.1\r\nContent-Length: 12").body_bytes == 12


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Transfer-Encoding: chunked", 411),
        (b"Content-Length: 1\r\nContent-Length: 2", 400),
        (b"Content-Length: 1, 2", 400),
        (b"Content-Length: +1", 400),
        ("Content-Length: \u00b2".encode("latin-1"), 400),
        (b"X: a\nHost: b", 400),
        (b"X : a", 400),
        (b" folded", 400),
        (b"X: a\x00b", 400),
        (b"\r\n".join(b"X: a" for _ in range(101)), 431),
    ],
)
def test_headers_that_two_parsers_could_read_differently_are_refused(headers: bytes, status: int) -> None:
    assert refused(b"POST http://example.org/ HTTP/1.1\r\n" + headers).status == status


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    try:
        found = parse_request(data)
    except Refusal as refusal:
        refusal.answer().decode("ascii")
    else:
        assert found.host
