"""Exit codes: blocks of ten per area, one meaning each, never reused."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from parity_protocol import errors

__all__ = ["EXIT_CODES", "FAILED_CHECK", "INTERNAL", "INTERRUPTED", "OK", "USAGE", "exit_code_of"]

OK = 0
FAILED_CHECK = 1  # a statement that the command checks does not hold
USAGE = 2
INTERNAL = 80
INTERRUPTED = 130

EXIT_CODES: Mapping[type[errors.ParityError], int] = MappingProxyType(
    {
        # 10–19: this machine's settings
        errors.ConfigInvalid: 10,
        # 20–29: what was given
        errors.InvalidInput: 20,
        errors.TooLarge: 21,
        errors.NotFound: 22,
        errors.BadCid: 23,
        # 30–39: trust
        errors.Untrusted: 30,
        errors.ClockSkew: 31,
        errors.Unauthenticated: 32,
        errors.Forbidden: 33,
        errors.DigestMismatch: 34,
        # 40–49: the state does not allow it
        errors.Conflict: 40,
        errors.NodeInUse: 41,
        errors.NotFinished: 42,
        errors.TaskCancelled: 43,
        # 50–59: refused, money
        errors.Unprocessable: 50,
        errors.StakeTooLow: 51,
        errors.EscrowTooLow: 52,
        errors.PolicyDenied: 53,
        # 60–69: somebody does not answer
        errors.Unavailable: 60,
        errors.Unreachable: 61,
        errors.ChainUnavailable: 62,
        errors.Overloaded: 63,
        errors.StorageFull: 64,
        # 70–79: how work ended
        errors.ExecutionFailed: 70,
        # 80–89: our own fault
        errors.Internal: INTERNAL,
        errors.ParityError: INTERNAL,
    }
)


def exit_code_of(error: errors.ParityError) -> int:
    """Return the exit code of an error: its own class's, else its nearest ancestor's."""
    return next(EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES)
