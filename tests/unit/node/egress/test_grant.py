from __future__ import annotations

import pytest

from parity_node.executors.egress import Grant, egress_env
from parity_protocol.needs import Egress


def grant(*domains: str) -> Grant:
    return Grant.of(Egress(domains=domains))


@pytest.mark.parametrize(
    ("rule", "host", "port", "expected"),
    [
        ("example.org", "example.org", 443, True),
        ("example.org", "example.org", 80, False),
        ("example.org", "www.example.org", 443, False),
        ("example.org", "badexample.org", 443, False),
        ("example.org", "example.org.evil.net", 443, False),
        ("*.example.org", "www.example.org", 443, True),
        ("*.example.org", "a.b.example.org", 443, True),
        ("*.example.org", "example.org", 443, False),
        ("*.example.org", ".example.org", 443, False),
        ("*.example.org", "badexample.org", 443, False),
        ("example.org:80", "example.org", 80, True),
        ("example.org:80", "example.org", 443, False),
        ("*.example.org:8443", "x.example.org", 8443, True),
    ],
)
def test_a_rule_covers_exactly_its_hosts_and_its_port(rule: str, host: str, port: int, *, expected: bool) -> None:
    assert grant(rule).allows(host, port) is expected


def test_any_rule_of_a_grant_is_enough() -> None:
    assert grant("example.net", "example.org").allows("example.org", 443)


def test_programs_find_the_proxy_in_both_spellings() -> None:
    env = egress_env()

    assert {name for name, value in env.items() if value == "http://127.0.0.1:3128"} == {
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    }
    assert env["NO_PROXY"] == env["no_proxy"] == "localhost,127.0.0.1"
