"""A full disk is told from a broken one, whoever meets it."""

from __future__ import annotations

import errno

import pytest

from parity_protocol.disk import failure_of, is_full
from parity_protocol.errors import FailureReason


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_no_room_is_a_full_disk(number: int) -> None:
    assert is_full(OSError(number, "no room"))
    assert failure_of(OSError(number, "no room")) is FailureReason.DISK_FULL


def test_anything_else_is_not() -> None:
    assert not is_full(OSError(errno.EIO, "I/O error"))
    assert not is_full(ValueError(errno.ENOSPC))
    assert failure_of(PermissionError(errno.EACCES, "denied")) is FailureReason.NODE_FAULT
