from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_blobs.public_address import (
    MAX_ANSWERS,
    HttpsTarget,
    is_host_name,
    is_public,
    parse_https_url,
    resolve_public,
)
from parity_protocol.errors import BadField, PolicyDenied, Unreachable

HOSTILE = json.loads((Path(__file__).parents[2] / "vectors" / "ssrf" / "hostile_urls.json").read_text())


class Zone:
    """A resolver that answers from a list, one list after the other."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "172.15.255.255", "100.128.0.1", "169.253.255.255"),
        *("2606:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001:800::200e", "64:ff9b::101:101"),
        *("::ffff:8.8.8.8", "2001:200::1"),
    ],
)
def test_addresses_of_the_open_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "100.100.100.200"),
        *("0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.192", "198.19.255.255", "168.63.129.16"),
        *("192.0.2.1", "198.51.100.1", "203.0.113.1", "192.88.99.1"),
        *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1"),
        *(
            "2002:7f00:1::",
            "2002:808:808::1",
            "2001:0:808:808::1",
            "2001:db8::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
        ),
        *("ff02::1", "ff0e::1", "100::1", "3fff::1", "5f00::1", "2600::5efe:a00:1", "2600::200:5efe:a00:1", "fec0::1"),
    ],
)
def test_special_addresses_and_ipv4_in_disguise_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "text",
    [
        *("127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "1.1.1", "1.1.1.1.", " 1.1.1.1", "1.1.1.01", "1.1.1.1%1"),
        *("2606:4700::1111%eth0", "[2606:4700::1111]", "", "localhost", "\u0661.1.1.1"),
    ],
)
def test_what_is_not_an_address_in_its_usual_form_is_not_public(text: str) -> None:
    assert not is_public(text)


@given(st.ip_addresses())
def test_only_what_the_standard_library_calls_global_is_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    is_translated = isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped is not None or address in ipaddress.IPv6Network("64:ff9b::/96")
    )

    assert not is_public(str(address)) or address.is_global or is_translated


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_as_public_in_every_translation(address: ipaddress.IPv4Address) -> None:
    expected = is_public(str(address))

    assert is_public(f"::ffff:{address}") is expected
    assert is_public(f"64:ff9b::{address}") is expected
    assert not is_public(str(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80))))


@pytest.mark.parametrize("name", ["example.org", "a.b", "xn--bcher-kva.example", "x1.9a.example", "_dmarc.example.org"])
def test_names_of_two_labels_are_host_names(name: str) -> None:
    assert is_host_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "localhost",
            "1.2.3",
            "127.1",
            "0x7f.1",
            "a.0x",
            "a.b.",
            "a..b",
            ".a.b",
            "*.a.b",
            "a b.c",
            "b\u00fccher.de",
            "a.1",
        ),
        *("a.b\n", "a/b.c", "a@b.c", "-a.b", "a-.b", f"{'a' * 64}.b", "a." * 127 + "bb", ""),
    ],
)
def test_what_some_program_could_read_otherwise_is_no_host_name(name: str) -> None:
    assert not is_host_name(name)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.org/", ("example.org", 443)),
        ("https://Example.ORG", ("example.org", 443)),
        ("https://example.org:8443/a/@b?c=d:e&f=%20", ("example.org", 8443)),
        ("https://1.1.1.1/x", ("1.1.1.1", 443)),
        ("https://[2606:4700::1111]:8443/x", ("2606:4700::1111", 8443)),
    ],
)
def test_a_plain_url_is_read(url: str, target: tuple[str, int]) -> None:
    assert parse_https_url(url) == HttpsTarget(*target)


@pytest.mark.parametrize(
    "url", ["https://[1.1.1.1]/", "https://example.org/a#b", "https://example.org/a\\b", "https://example.org/a b"]
)
def test_what_parsers_read_differently_is_refused(url: str) -> None:
    with pytest.raises(BadField):
        parse_https_url(url)


async def test_no_hostile_url_leads_to_an_address() -> None:
    assert len(HOSTILE["urls"]) >= 200

    async def zone(host: str, _port: int) -> Sequence[str]:
        if host == "rebind.example":
            return ["127.0.0.1"]
        return list(HOSTILE["names"].get(host, ()))

    reached = []
    for url in HOSTILE["urls"]:
        try:
            reached.append((url, await resolve_public(*parse_https_url(url), resolver=zone)))
        except (BadField, PolicyDenied, Unreachable):
            continue

    assert reached == []


async def test_every_address_of_a_name_must_be_public() -> None:
    with pytest.raises(PolicyDenied, match=r"10\.0\.0\.1, which is not a public address"):
        await resolve_public("example.org", 443, resolver=Zone(["1.1.1.1", "10.0.0.1"]))


async def test_a_name_is_looked_up_once() -> None:
    zone = Zone(["1.1.1.1", "2606:4700::1111"], ["127.0.0.1"])

    found = await resolve_public("example.org", 443, resolver=zone)

    assert found == ["1.1.1.1", "2606:4700::1111"]
    assert zone.asked == [("example.org", 443)]


async def test_an_address_is_not_looked_up() -> None:
    zone = Zone(["1.1.1.1"])

    assert await resolve_public("8.8.8.8", 443, resolver=zone) == ["8.8.8.8"]
    with pytest.raises(PolicyDenied):
        await resolve_public("127.0.0.1", 443, resolver=zone)
    assert zone.asked == []


async def test_a_name_without_an_address_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="no address"):
        await resolve_public("example.org", 443, resolver=Zone([]))


async def test_a_failing_lookup_is_unreachable() -> None:
    async def fails(host: str, port: int) -> Sequence[str]:
        raise OSError(f"no server for {host}:{port}")

    with pytest.raises(Unreachable, match=r"no server for example\.org:443"):
        await resolve_public("example.org", 443, resolver=fails)


async def test_a_flood_of_addresses_is_refused() -> None:
    flood = [f"1.1.1.{each}" for each in range(MAX_ANSWERS + 1)]

    with pytest.raises(PolicyDenied, match="more than"):
        await resolve_public("example.org", 443, resolver=Zone(flood))
