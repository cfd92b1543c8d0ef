"""An engine that was started again is another one, also behind a socket that somebody else keeps open for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity_node.executors.docker.lifeline import Lifeline


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket as systemd opens it: the same one for every engine that is started behind it."""
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(tmp_path / "docker.sock"))
        found.listen()
        yield found


@pytest.fixture
def lifeline(tmp_path: Path) -> Iterator[Lifeline]:
    found = Lifeline(tmp_path / "docker.sock")
    yield found
    found.close()


def test_an_engine_that_goes_on_is_the_same(lifeline: Lifeline, listener: socket.socket) -> None:
    first = lifeline.instance()
    engine, _ = listener.accept()

    with engine:
        engine.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
        assert first
        assert [lifeline.instance(), lifeline.instance()] == [first, first]


def test_one_that_was_started_again_behind_the_same_socket_is_another(
    lifeline: Lifeline, listener: socket.socket
) -> None:
    first = lifeline.instance()
    engine, _ = listener.accept()
    engine.close()

    second = lifeline.instance()

    assert second not in {"", first}
    assert lifeline.instance() == second


def test_one_that_hangs_is_the_same(lifeline: Lifeline, listener: socket.socket) -> None:
    first = lifeline.instance()

    assert lifeline.instance() == first


def test_one_that_is_gone_is_none_until_it_is_back(lifeline: Lifeline, listener: socket.socket, tmp_path: Path) -> None:
    first = lifeline.instance()
    listener.close()
    gone = lifeline.instance()
    (tmp_path / "docker.sock").unlink()
    with socket.socket(socket.AF_UNIX) as again:
        again.bind(str(tmp_path / "docker.sock"))
        again.listen()
        back = lifeline.instance()

    assert (gone, back not in {"", first}) == ("", True)


def test_one_that_talks_without_end_is_not_listened_to(lifeline: Lifeline, listener: socket.socket) -> None:
    first = lifeline.instance()
    engine, _ = listener.accept()

    with engine:
        engine.sendall(b"x" * (16 * 4_096))
        assert lifeline.instance() != first


def test_a_connection_that_was_closed_is_opened_again(lifeline: Lifeline, listener: socket.socket) -> None:
    first = lifeline.instance()
    lifeline.close()
    lifeline.close()

    assert lifeline.instance() not in {"", first}


def test_a_connection_that_nobody_refers_to_any_more_is_let_go(listener: socket.socket, tmp_path: Path) -> None:
    assert Lifeline(tmp_path / "docker.sock").instance()

    engine, _ = listener.accept()
    with engine:
        assert engine.recv(4_096).startswith(b"GET /_ping ")
        assert engine.recv(1) == b""
