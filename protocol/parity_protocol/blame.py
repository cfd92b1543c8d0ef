"""Why an execution did not end well, and who is to blame for it (design §9)."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Blame", "FailureReason"]


class Blame(StrEnum):
    """Whose fault a failed execution is; it decides retry, reputation and pay."""

    TASK = "task"  # no retry: it would fail anywhere
    NODE = "node"  # retry elsewhere; counts against the node
    DEPENDENCY = "dependency"  # retry; nobody is blamed
    NETWORK = "network"  # retry; nobody is blamed
    INTERRUPTED = "interrupted"  # retry; the operator or a restart stopped it


class FailureReason(StrEnum):
    """Why an execution failed: a closed set on the wire. Unknown words fold to their blame's general reason."""

    TASK_FAULT = "task_fault"
    EXIT_STATUS = "exit_status"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_TOO_LARGE = "output_too_large"
    SPEC_INVALID = "spec_invalid"
    DATA_INVALID = "data_invalid"
    DIGEST_MISMATCH = "digest_mismatch"
    NUMERICAL_INSTABILITY = "numerical_instability"
    NODE_FAULT = "node_fault"
    EXECUTOR_UNAVAILABLE = "executor_unavailable"
    SANDBOX_FAILED = "sandbox_failed"
    DISK_FULL = "disk_full"
    NODE_RESTARTED = "node_restarted"
    DEPENDENCY_UNAVAILABLE = "dependency_unavailable"
    DATA_UNAVAILABLE = "data_unavailable"
    NETWORK_FAULT = "network_fault"
    INTERRUPTED = "interrupted"
    DRAINED = "drained"
    LEASE_LOST = "lease_lost"

    @property
    def blame(self) -> Blame:
        """Whose fault this is."""
        return _BLAME[self]

    @classmethod
    def parse(cls, word: str, blame: Blame = Blame.NODE) -> FailureReason:
        """Read a reason from the wire; an unknown word becomes the general reason of ``blame``."""
        try:
            return cls(word)
        except ValueError:
            return _GENERAL[blame]


_BLAME = {
    FailureReason.TASK_FAULT: Blame.TASK,
    FailureReason.EXIT_STATUS: Blame.TASK,
    FailureReason.TIMEOUT: Blame.TASK,
    FailureReason.OUT_OF_MEMORY: Blame.TASK,
    FailureReason.OUTPUT_TOO_LARGE: Blame.TASK,
    FailureReason.SPEC_INVALID: Blame.TASK,
    FailureReason.DATA_INVALID: Blame.TASK,
    FailureReason.DIGEST_MISMATCH: Blame.TASK,
    FailureReason.NUMERICAL_INSTABILITY: Blame.TASK,
    FailureReason.NODE_FAULT: Blame.NODE,
    FailureReason.EXECUTOR_UNAVAILABLE: Blame.NODE,
    FailureReason.SANDBOX_FAILED: Blame.NODE,
    FailureReason.DISK_FULL: Blame.NODE,
    FailureReason.NODE_RESTARTED: Blame.INTERRUPTED,
    FailureReason.DEPENDENCY_UNAVAILABLE: Blame.DEPENDENCY,
    FailureReason.DATA_UNAVAILABLE: Blame.NETWORK,
    FailureReason.NETWORK_FAULT: Blame.NETWORK,
    FailureReason.INTERRUPTED: Blame.INTERRUPTED,
    FailureReason.DRAINED: Blame.INTERRUPTED,
    FailureReason.LEASE_LOST: Blame.INTERRUPTED,
}
_GENERAL = {
    Blame.TASK: FailureReason.TASK_FAULT,
    Blame.NODE: FailureReason.NODE_FAULT,
    Blame.DEPENDENCY: FailureReason.DEPENDENCY_UNAVAILABLE,
    Blame.NETWORK: FailureReason.NETWORK_FAULT,
    Blame.INTERRUPTED: FailureReason.INTERRUPTED,
}
