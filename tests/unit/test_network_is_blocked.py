"""The rule of this folder holds."""

from __future__ import annotations

import socket

import pytest


def test_a_unit_test_cannot_open_a_network_socket() -> None:
    # pytest-socket warns and then raises; warnings being errors, the warning comes first.
    with pytest.raises(Exception, match=r"tried to use socket\.socket"):
        socket.socket(socket.AF_INET, socket.SOCK_STREAM)
