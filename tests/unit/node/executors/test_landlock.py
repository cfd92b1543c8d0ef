from __future__ import annotations

import os

import pytest

from parity_node.executors.sandbox import landlock
from parity_node.executors.sandbox.landlock import STAGE, landlock_words, missing_layer
from parity_node.executors.sandbox.seccomp import ARCHITECTURES
from parity_node.executors.sandbox.syscalls import ALLOWED

REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15


@pytest.mark.parametrize(
    ("abi", "handled"),
    [(1, 0x1FFF), (2, 0x3FFF), (3, 0x7FFF), (4, 0x7FFF), (5, 0xFFFF), (7, 0xFFFF)],
)
def test_every_right_that_the_kernel_knows_is_handled_and_no_other(abi, handled):
    # uapi/linux/landlock.h: REFER came with ABI 2, TRUNCATE with 3, IOCTL_DEV with 5
    assert landlock._handled(abi) == handled


def test_no_folder_of_the_task_may_hold_devices():
    make_char, make_block = 1 << 6, 1 << 11

    assert not landlock._OWN & (make_char | make_block)
    assert landlock._OWN | make_char | make_block == 0xFFFF


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_the_stage_may_make_its_two_system_calls_and_closes_the_right_number(architecture):
    words = landlock_words(9, architecture)

    assert words[0] == STAGE
    assert words[-2:] == ["9", str(ALLOWED["close"][architecture.column])]
    assert str(ALLOWED["landlock_restrict_self"][architecture.column]) in words[2]


def test_what_is_missing_for_the_layer_is_said(monkeypatch):
    monkeypatch.setattr(landlock, "landlock_abi", lambda: 0)
    assert "no Landlock" in missing_layer()

    monkeypatch.setattr(landlock, "landlock_abi", lambda: 1)
    monkeypatch.setattr(landlock, "STAGE", "/nonexistent/perl")
    assert "/nonexistent/perl" in missing_layer()


def test_a_kernel_that_refuses_is_an_abi_of_none(monkeypatch):
    def refuse(*words: object) -> int:
        raise landlock.ExecutionFailed(landlock.FailureReason.SANDBOX_FAILED, "Landlock: ENOSYS")

    landlock.landlock_abi.cache_clear()
    monkeypatch.setattr(landlock, "_call", refuse)
    assert landlock.landlock_abi() == 0
    landlock.landlock_abi.cache_clear()


def test_a_ruleset_leaves_no_descriptor_open_and_is_not_inherited(monkeypatch):
    opened = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(landlock, "_call", lambda *words: opened)

    ruleset = landlock.Ruleset(7)

    assert not os.get_inheritable(ruleset.fd)
    ruleset.close()
    ruleset.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened)
