from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_node.executors.egress.client_hello import MAX_HELLO_BYTES, Hello, read_hello


def hello(name: str | None) -> bytes:
    """Return what a real TLS client sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def in_records(data: bytes, size: int) -> bytes:
    """Return the same handshake message in records of ``size`` bytes."""
    message = data[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(data[:3] + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def test_the_server_name_of_a_client_is_read() -> None:
    assert read_hello(hello("www.Example.org")) == Hello(is_tls=True, server_names=("www.example.org",))


def test_a_client_without_a_server_name_has_none() -> None:
    assert read_hello(hello(None)) == Hello(is_tls=True)


def test_a_hello_in_many_records_is_read() -> None:
    assert read_hello(in_records(hello("example.org"), 16)) == Hello(is_tls=True, server_names=("example.org",))


def test_a_part_of_a_hello_is_not_decided_yet() -> None:
    whole = hello("example.org")

    assert [at for at in range(len(whole)) if read_hello(whole[:at]) is not None] == []


def test_another_protocol_is_told_apart_at_its_first_byte() -> None:
    assert read_hello(b"S") == Hello(is_tls=False)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x02\x00\x00\x01\x01",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",
        b"\x16\x03\x01\x00\x02\x01\x00\x17\x03\x03\x00\x01\x00",
        b"\x16\x03\x01\x00\x01\x01" * (MAX_HELLO_BYTES // 6),
    ],
)
def test_a_hello_that_is_not_whole_or_too_long_is_not_readable(data: bytes) -> None:
    found = read_hello(data)

    assert found is not None
    assert not found.is_readable


def test_thousands_of_tiny_records_are_refused_before_they_take_the_nodes_time() -> None:
    message = b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xff" + bytes(20_000)

    assert read_hello(in_records(message, 1)[: 6 * 63]) is None
    found = read_hello(in_records(message, 1))

    assert found is not None
    assert not found.is_readable


@given(st.binary(max_size=300))
def test_any_bytes_are_decided_or_wait_for_more(data: bytes) -> None:
    for body in (data, b"\x16\x03\x01" + len(data).to_bytes(2, "big") + data):
        found = read_hello(body)
        assert found is None or found.is_tls == (body[0] == 22)


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_a_changed_byte_never_gives_another_name_than_what_is_there(at: int, value: int) -> None:
    data = bytearray(hello("example.org"))
    data[at % len(data)] = value

    found = read_hello(bytes(data))

    for name in found.server_names if found else ():
        assert name.encode() in bytes(data).lower()
