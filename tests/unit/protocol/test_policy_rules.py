"""A policy's patterns: what each allows and denies, and what somebody may try to slip past it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from parity_protocol.policy_rules import (
    DomainPattern,
    ImagePattern,
    covers_domain,
    is_denied_image,
    is_denied_program,
    is_image,
    is_program,
    is_shell,
    matches,
    parse_window,
    registry_of,
    touches_domain,
)
from parity_protocol.task import CommandSpec, DockerSpec, parse_spec

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
CID_TAR = {"kind": "cid", "cid": "bafyimage"}
URL_TAR = {"kind": "https", "url": "https://x.org/i.tar", "sha256": "c" * 64, "size": 10}


def docker(image: str, tar: dict[str, Any] | None = None) -> DockerSpec:
    spec = parse_spec(json.dumps({"type": "docker", "image": image} | ({"image_tar": tar} if tar else {})))
    assert isinstance(spec, DockerSpec)
    return spec


def command(*words: str, **more: Any) -> CommandSpec:
    spec = parse_spec(json.dumps({"type": "command", "command": list(words), **more}))
    assert isinstance(spec, CommandSpec)
    return spec


@given(pattern=st.text("ab*", max_size=8), text=st.text("ab", max_size=10))
def test_a_star_is_any_text_and_nothing_else_is_special(pattern: str, text: str) -> None:
    assert matches(pattern, text) == fnmatchcase(text, pattern)


def test_brackets_and_question_marks_are_themselves() -> None:
    assert matches("[a]?", "[a]?")
    assert not matches("[a]?", "ab")


@pytest.mark.parametrize(
    ("pattern", "image", "is_allowed"),
    [
        ("debian", "debian", True),
        ("debian", "debian:12", True),
        ("debian", f"debian@{A}", True),
        ("debian", "docker.io/library/debian:12", True),
        ("debian", "index.docker.io/library/debian", True),
        ("docker.io/debian", "debian", True),
        ("debian", "evil/debian", False),
        ("debian", "evil.org/library/debian", False),
        ("debian", "debian-evil", False),
        ("debian:12", "debian:12", True),
        ("debian:12", "debian:13", False),
        ("debian:latest", "debian", True),
        ("debian:12", f"debian:12@{A}", False),  # the engine would not look at the tag
        ("debian:12*", "debian:12-slim", True),
        (f"debian@{A}", f"debian@{A}", True),
        (f"debian@{A}", f"debian:whatever@{A}", True),
        (f"debian@{A}", f"debian@{B}", False),
        (f"debian@{A}", "debian:12", False),
        ("ghcr.io/me/*", "ghcr.io/me/tool:1", True),
        ("ghcr.io/me/*", "ghcr.io/me/deep/tool", True),
        ("ghcr.io/me/*", "ghcr.io/meow/tool", False),
        ("ghcr.io/me/*", "evil.io/ghcr.io/me/tool", False),
        ("ghcr.io/me/*", "GHCR.io/me/tool", True),
        ("me/*", "me/tool", True),
        ("me/*", "evil.io/me/tool", False),
        ("localhost:5000/*", "localhost:5000/x:1", True),
        ("localhost:5000/*", "localhost:5001/x:1", False),
        ("python*", "python:3.11", True),
        ("*", "anything.io/at/all", True),
        ("tar:*", "debian", False),
    ],
)
def test_what_an_image_pattern_allows(pattern: str, image: str, is_allowed: bool) -> None:
    assert is_image(pattern, docker(image)) is is_allowed


@pytest.mark.parametrize(
    ("pattern", "tar", "is_allowed"),
    [
        ("debian:12", CID_TAR, False),  # its name is only the submitter's word
        ("debian", URL_TAR, False),
        ("tar:bafyimage", CID_TAR, True),
        ("tar:bafyother", CID_TAR, False),
        ("tar:sha256:" + "c" * 64, URL_TAR, True),
        ("tar:*", CID_TAR, True),
        ("*", CID_TAR, True),
    ],
)
def test_an_archive_is_allowed_by_its_content_only(pattern: str, tar: dict[str, Any], is_allowed: bool) -> None:
    assert is_image(pattern, docker("debian:12", tar)) is is_allowed


@pytest.mark.parametrize(
    ("pattern", "image", "tar", "is_denied"),
    [
        ("debian:12", f"debian:12@{A}", None, True),
        ("debian:12", "debian:13", None, False),
        ("xmrig*", "evil.io/deep/xmrig-cuda:1", None, True),
        ("*miner*", "ghcr.io/x/goodminer", None, True),
        ("evil.io/*", "evil.io/x", None, True),
        ("evil/*", "ghcr.io/evil/x", None, True),
        ("debian", "debian", CID_TAR, True),
        ("tar:*", "debian", CID_TAR, True),
        ("tar:*", "debian", None, False),
        ("tar:*", "tar", None, False),
        (f"debian@{A}", f"debian@{B}", None, False),
    ],
)
def test_what_an_image_pattern_denies(pattern: str, image: str, tar: dict[str, Any] | None, is_denied: bool) -> None:
    assert is_denied_image(pattern, docker(image, tar)) is is_denied


PATTERNS = [
    "*",
    "debian",
    "debian:12",
    "debian:1*",
    f"debian@{A}",
    "ghcr.io/me/*",
    "me/*",
    "*tool*",
    "tar:*",
    "docker.io/m*",
]
IMAGES = ["debian", "debian:12", f"debian:12@{A}", f"debian@{B}", "ghcr.io/me/tool:1", "me/tool", "docker.io/me/tool"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tar", [None, CID_TAR, URL_TAR], ids=["pulled", "cid", "https"])
def test_what_a_pattern_allows_it_denies_too(pattern: str, tar: dict[str, Any] | None) -> None:
    for image in IMAGES:
        assert is_denied_image(pattern, docker(image, tar)) or not is_image(pattern, docker(image, tar))


@pytest.mark.parametrize(
    ("image", "tar", "registry"),
    [
        ("debian", None, "docker.io"),
        ("me/tool", None, "docker.io"),
        ("index.docker.io/me/tool", None, "docker.io"),
        ("Reg.Example.org:5000/x", None, "reg.example.org:5000"),
        ("localhost/x", None, "localhost"),
        ("ghcr.io/me/tool", CID_TAR, "tar"),
    ],
)
def test_the_registry_of_an_image(image: str, tar: dict[str, Any] | None, registry: str) -> None:
    assert registry_of(docker(image, tar)) == registry


@pytest.mark.parametrize("pattern", ["", "a b", "debian;rm", "-x", "@sha256:0", "a\n"])
def test_what_is_no_image_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ImagePattern).validate_python(pattern)


@pytest.mark.parametrize(
    ("pattern", "program", "is_allowed"),
    [
        ("ffmpeg", "ffmpeg", True),
        ("ffmpeg", "./ffmpeg", False),
        ("ffmpeg", "/tmp/ffmpeg", False),
        ("/usr/bin/*", "/usr/bin/ffmpeg", True),
        ("/usr/bin/*", "//usr//bin/ffmpeg", True),
        ("/usr/bin/*", "/usr/bin/../../tmp/evil", False),
        ("/usr/bin/*", "usr/bin/ffmpeg", False),
        ("py*", "python3", True),
        ("*", "/anything", True),
    ],
)
def test_what_a_program_pattern_allows(pattern: str, program: str, is_allowed: bool) -> None:
    assert is_program(pattern, command(program)) is is_allowed
    assert is_denied_program(pattern, command(program)) or not is_allowed


@pytest.mark.parametrize(("pattern", "program"), [("bash", "/opt/bash"), ("/bin/sh", "sh"), ("/bin/*", "/bin//x")])
def test_a_denied_program_is_denied_wherever_it_lies(pattern: str, program: str) -> None:
    assert is_denied_program(pattern, command(program))


def test_a_shell_is_one_by_request_or_by_name() -> None:
    assert is_shell(command("ls", shell=True))
    assert is_shell(command("/usr/bin/../bin/bash", "-c", "ls"))
    assert not is_shell(command("ls"))


@pytest.mark.parametrize(
    ("pattern", "wanted", "is_covered", "is_touched"),
    [
        ("pypi.org", "pypi.org", True, True),
        ("pypi.org", "pypi.org:8443", False, True),
        ("pypi.org:8443", "pypi.org:8443", True, True),
        ("pypi.org:8443", "pypi.org", False, False),
        ("pypi.org:*", "pypi.org:8443", True, True),
        ("pypi.org", "evilpypi.org", False, False),
        ("pypi.org", "pypi.org.evil.com", False, False),
        ("*.example.org", "a.example.org", True, True),
        ("*.example.org", "a.b.example.org", True, True),
        ("*.example.org", "example.org", False, False),
        ("*.example.org", "*.example.org", True, True),
        ("*.example.org", "*.a.example.org", True, True),
        ("*.example.org", "notexample.org", False, False),
        ("a.example.org", "*.example.org", False, True),
        ("*.a.example.org", "*.example.org", False, True),
        ("*", "pypi.org", True, True),
        ("*", "pypi.org:80", False, True),
        ("*:*", "*.pypi.org:80", True, True),
    ],
)
def test_which_hosts_a_pattern_covers_and_touches(
    pattern: str, wanted: str, is_covered: bool, is_touched: bool
) -> None:
    TypeAdapter(DomainPattern).validate_python(pattern)

    assert covers_domain(pattern, wanted) is is_covered
    assert touches_domain(pattern, wanted) is is_touched


@pytest.mark.parametrize(
    "pattern", ["", "PyPI.org", "10.0.0.1", "localhost", "a.*.org", "https://x.org", "x.org:0", "[::1]"]
)
def test_what_is_no_host_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(DomainPattern).validate_python(pattern)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@pytest.mark.parametrize(
    ("window", "now", "is_inside"),
    [
        ("mon-fri 22:00-06:00 Europe/Rome", "2026-01-05T21:00:00+00:00", True),  # Monday, 22:00 in Rome
        ("mon-fri 22:00-06:00 Europe/Rome", "2026-01-05T20:59:59+00:00", False),
        ("mon-fri 22:00-06:00 Europe/Rome", "2026-01-10T04:59:00+00:00", True),  # Saturday 05:59, since Friday
        ("mon-fri 22:00-06:00 Europe/Rome", "2026-01-10T05:00:00+00:00", False),
        ("mon-fri 22:00-06:00 Europe/Rome", "2026-01-05T04:00:00+00:00", False),  # Monday 05:00: Sunday is no such day
        ("mon-fri 22:00-06:00 Europe/Rome", "2026-07-06T20:00:00+00:00", True),  # summer time: 22:00 in Rome
        ("sat,sun", "2026-01-10T00:00:00+00:00", True),
        ("sat,sun", "2026-01-12T00:00:00+00:00", False),
        ("fri-mon 12:00-24:00", "2026-01-12T23:59:00+00:00", True),
        ("fri-mon 12:00-24:00", "2026-01-13T12:00:00+00:00", False),
        ("09:00-17:00", "2026-01-13T16:59:59+00:00", True),
        ("09:00-17:00", "2026-01-13T17:00:00+00:00", False),
        ("sun Asia/Tokyo", "2026-01-10T15:00:00+00:00", True),
    ],
)
def test_when_hours_are_open(window: str, now: str, is_inside: bool) -> None:
    assert parse_window(window).contains(at(now)) is is_inside


@pytest.mark.parametrize(
    "text",
    [
        "",
        "monday",
        "mon-fri-sun",
        "25:00-26:00",
        "10:60-11:00",
        "10:00-10:00",
        "24:00-06:00",
        "mon 10:00",
        "Europe/Rome",
        "mon Europe/Nowhere",
        "mon 09:00-17:00 ../../etc/passwd",
        "mon " + "x" * 200,
    ],
)
def test_what_are_no_hours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_window(text)
