from __future__ import annotations

import errno
import os

import pytest

from parity_node import fl_child
from parity_node.executors import training
from parity_node.executors.folder import JobFolder
from parity_protocol.errors import BadField, ExecutionFailed, FailureReason, Internal, StorageFull


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ExecutionFailed(FailureReason.DATA_INVALID, "no data loaded"), "data_invalid"),
        (ExecutionFailed(FailureReason.NUMERICAL_INSTABILITY, "NaN"), "numerical_instability"),
        (BadField("num_trees is required", field="model_config.num_trees"), "spec_invalid"),
        (StorageFull("no room"), "disk_full"),
        (Internal("broken"), "node_fault"),
        (MemoryError(), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EIO, "Input/output error"), "node_fault"),
        (ZeroDivisionError("secret value"), "node_fault"),
    ],
)
def test_each_failure_has_a_reason_that_blames_the_right_one(error, reason, monkeypatch, tmp_path):
    def train(folder: JobFolder) -> dict[str, object]:
        raise error

    monkeypatch.setattr(training, "_train", train)

    outcome = training._outcome(JobFolder(tmp_path))

    assert (outcome["ok"], outcome["reason"]) == (False, reason)
    assert "secret value" not in str(outcome["message"])


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (FailureReason.DATA_INVALID, "failed to load training data: no data loaded"),
        (FailureReason.NUMERICAL_INSTABILITY, "training failed: no data loaded"),
        (FailureReason.SPEC_INVALID, "no data loaded"),
    ],
)
def test_messages_begin_as_the_parity_runners_do(reason, said, monkeypatch, tmp_path):
    def train(folder: JobFolder) -> dict[str, object]:
        raise ExecutionFailed(reason, "no data loaded")

    monkeypatch.setattr(training, "_train", train)

    assert training._outcome(JobFolder(tmp_path))["message"] == said


def test_a_process_whose_node_has_ended_already_does_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(fl_child, "_die_with", lambda pid: os.getppid() == pid)

    assert fl_child.main(["4242", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []
