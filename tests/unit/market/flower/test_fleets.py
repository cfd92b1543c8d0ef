"""Where SuperLinks will be: ports, folders, and who may be refused before one exists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parity_fl.engines.flower import bundle_digest
from parity_market.flower import Fleets
from parity_protocol.errors import ConfigInvalid, Overloaded, Unprocessable
from parity_protocol.testing.clock import FakeClock


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity_market.flower.fleets.is_installed", lambda: True)
    monkeypatch.setattr("parity_market.flower.fleets._bindable", lambda _host, port: port or 40_000)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_a_session_planned_twice_has_the_same_fleet(tmp_path: Path, clock: FakeClock) -> None:
    fleets = Fleets(tmp_path / "flower", clock)

    assert await fleets.prepare("s") == await fleets.prepare("s")


async def test_a_fleet_names_our_bundle_and_its_own_root(tmp_path: Path, clock: FakeClock) -> None:
    fleets = Fleets(tmp_path / "flower", clock, address="fl.example.org:9400-9401")

    one, other = await fleets.prepare("one"), await fleets.prepare("other")

    assert one.bundle_sha256 == bundle_digest()
    assert {one.superlink, other.superlink} == {"fl.example.org:9400", "fl.example.org:9401"}
    assert one.root_ca_pem != other.root_ca_pem


async def test_keys_and_secrets_are_the_markets_alone(tmp_path: Path, clock: FakeClock) -> None:
    fleets = Fleets(tmp_path / "flower", clock)
    await fleets.prepare("s")

    folder = fleets.folder("s")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "server.key").stat().st_mode & 0o077 == 0
    assert (folder / "control.secret").read_text() != (folder / "superexec.secret").read_text()


async def test_without_a_free_port_a_session_is_refused(tmp_path: Path, clock: FakeClock) -> None:
    fleets = Fleets(tmp_path / "flower", clock, address="fl.example.org:9400-9400")
    await fleets.prepare("one")

    with pytest.raises(Unprocessable, match="no port is free"):
        await fleets.prepare("other")


async def test_more_sessions_than_the_market_allows_are_refused_and_none_is_forgotten(
    tmp_path: Path, clock: FakeClock
) -> None:
    fleets = Fleets(tmp_path / "flower", clock, address="fl.example.org:9400-9409", most=2)
    first = await fleets.prepare("one")
    await fleets.prepare("two")

    with pytest.raises(Overloaded, match="MARKET_FLOWER_SESSIONS"):
        await fleets.prepare("three")

    assert await fleets.prepare("one") == first


async def test_what_was_planned_and_never_begun_frees_its_port(tmp_path: Path, clock: FakeClock) -> None:
    fleets = Fleets(tmp_path / "flower", clock, address="fl.example.org:9400-9401")
    for name in ("refused", "begun"):
        await fleets.prepare(name)
    assert fleets.begin("begun") is not None
    long_ago = clock.now().timestamp() - 3600
    for name in ("refused", "begun"):
        os.utime(fleets.folder(name), (long_ago, long_ago))

    await fleets.prepare("new")

    assert fleets.read("refused") is None
    assert fleets.read("begun") is not None


async def test_tidying_keeps_what_runs(tmp_path: Path, clock: FakeClock) -> None:
    fleets = Fleets(tmp_path / "flower", clock, address="fl.example.org:9400-9409")
    for name in ("ended", "running"):
        await fleets.prepare(name)

    await fleets.tidy({"running"})

    assert fleets.read("ended") is None
    assert fleets.read("running") is not None


async def test_without_flower_a_session_is_refused_with_the_command(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parity_market.flower.fleets.is_installed", lambda: False)

    with pytest.raises(Unprocessable, match="parity fl engine install flower"):
        await Fleets(tmp_path / "flower", clock).prepare("s")


@pytest.mark.parametrize(
    ("address", "host", "listens"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost", "127.0.0.1"),
        ("[::1]", "::1", "::1"),
        ("fl.example.org:1-2", "fl.example.org", "0.0.0.0"),
        ("[2001:db8::1]:9400-9410", "2001:db8::1", "::"),
    ],
)
def test_only_others_need_make_it_listen_to_others(
    tmp_path: Path, clock: FakeClock, address: str, host: str, listens: str
) -> None:
    fleets = Fleets(tmp_path, clock, address=address)

    assert (fleets.host, fleets.listen_host) == (host, listens)


def test_a_range_that_is_none_is_a_wrong_setting(tmp_path: Path, clock: FakeClock) -> None:
    with pytest.raises(ConfigInvalid, match="MARKET_FLOWER_ADDRESS"):
        Fleets(tmp_path, clock, address="host:9410-9400")
