"""The error taxonomy: every error that crosses one of our boundaries is one of these.

::

    ParityError
    ├── InvalidInput            what came is not what the protocol allows        (400/422)
    │   ├── BadDocument         bytes that are not a document we accept
    │   ├── BadField            one named field is wrong
    │   ├── BadCid              not a content identifier we accept
    │   └── TooLarge            over a stated cap                                (413)
    ├── Untrusted               a signature, window, audience or digest is wrong (401/403)
    │   ├── BadSignature  ├── NotYetValid  ├── Expired  ├── WrongAudience  ├── WrongType
    │   ├── ClockSkew     ├── Replayed     ├── DigestMismatch └── UnknownKey
    ├── Unauthenticated (401)  Forbidden (403)  NotFound (404)
    ├── Conflict                the state does not allow it                      (409)
    │   ├── LeaseConflict  ├── StaleFence  ├── TaskCancelled  ├── NodeInUse
    │   └── InvalidTransition  └── NotFinished
    ├── Unprocessable           understood, and refused for a reason             (422)
    │   ├── ClaimRefused  ├── StakeTooLow  ├── EscrowTooLow  ├── PolicyDenied  └── TooFewUpdates
    ├── Unavailable             a dependency does not answer; retry              (503)
    │   ├── Unreachable  ├── ChainUnavailable  ├── Overloaded  └── StorageFull
    ├── ExecutionFailed         a task did not end well; carries a FailureReason
    ├── ConfigInvalid           settings are wrong; carries every problem at once
    └── Internal                our own invariant broke                          (500)

A class's docstring is its default message. ``code`` is stable and goes on the wire; ``retryable`` says whether the
same request can succeed later; ``hint()`` says what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from parity_protocol.blame import Blame, FailureReason

__all__ = [
    "BadCid",
    "BadDocument",
    "BadField",
    "BadSignature",
    "Blame",
    "ChainUnavailable",
    "ClaimRefused",
    "ClockSkew",
    "ConfigInvalid",
    "Conflict",
    "DigestMismatch",
    "EscrowTooLow",
    "ExecutionFailed",
    "Expired",
    "FailureReason",
    "Forbidden",
    "Internal",
    "InvalidInput",
    "InvalidTransition",
    "LeaseConflict",
    "NodeInUse",
    "NotFinished",
    "NotFound",
    "NotYetValid",
    "Overloaded",
    "ParityError",
    "PolicyDenied",
    "Replayed",
    "StakeTooLow",
    "StaleFence",
    "StorageFull",
    "TaskCancelled",
    "TooFewUpdates",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "UnknownKey",
    "Unprocessable",
    "Unreachable",
    "Untrusted",
    "WrongAudience",
    "WrongType",
    "error_for_code",
]


class ParityError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500  # HTTP status that the market answers with
    retryable: ClassVar[bool] = False
    next_step: ClassVar[str] = ""

    def __init__(self, message: str = "", *, hint: str = "", field: str = "") -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.field = field
        self._hint = hint
        super().__init__(self.message)

    def hint(self) -> str:
        """Return what the reader can do next; empty when nothing useful is known."""
        return self._hint or self.next_step


# -- what came is wrong ------------------------------------------------------------------------------------------


class InvalidInput(ParityError):
    """The request is not valid."""

    code = "invalid_input"
    status = 400


class BadDocument(InvalidInput):
    """The bytes are not a document that is accepted here."""

    code = "bad_document"


class BadField(InvalidInput):
    """A field is not valid."""

    code = "bad_field"
    status = 422


class BadCid(InvalidInput):
    """This is not a content identifier that is accepted here."""

    code = "bad_cid"


class TooLarge(InvalidInput):
    """The content is over its limit."""

    code = "too_large"
    status = 413


# -- what came cannot be trusted ---------------------------------------------------------------------------------


class Untrusted(ParityError):
    """The document cannot be trusted."""

    code = "untrusted"
    status = 401


class BadSignature(Untrusted):
    """The signature does not match."""

    code = "bad_signature"


class NotYetValid(Untrusted):
    """The document is not valid yet."""

    code = "not_yet_valid"
    next_step = "Compare this machine's clock with the market's: `parity node status` shows the difference."


class Expired(Untrusted):
    """The document has expired."""

    code = "expired"
    next_step = "Ask for a fresh one; if that is refused too, compare the clocks."


class WrongAudience(Untrusted):
    """The document is meant for somebody else."""

    code = "wrong_audience"


class WrongType(Untrusted):
    """The document is of another type than is expected here."""

    code = "wrong_type"


class ClockSkew(Untrusted):
    """This machine's clock differs too much from the market's."""

    code = "clock_skew"
    next_step = "Set the clock (for example `timedatectl set-ntp true`) and try again."


class Replayed(Untrusted):
    """This document was already used."""

    code = "replayed"


class DigestMismatch(Untrusted):
    """The content does not match its digest."""

    code = "digest_mismatch"


class UnknownKey(Untrusted):
    """The document names a key that is not known here."""

    code = "unknown_key"  # who keeps a key set may fetch it again, at most once a minute, and try once more

    def __init__(self, message: str = "", *, hint: str = "", field: str = "", kid: str = "") -> None:
        super().__init__(message, hint=hint, field=field)
        self.kid = kid


# -- who is asking -----------------------------------------------------------------------------------------------


class Unauthenticated(ParityError):
    """The caller is not known."""

    code = "unauthenticated"
    status = 401


class Forbidden(ParityError):
    """The caller may not do this."""

    code = "forbidden"
    status = 403


class NotFound(ParityError):
    """There is no such thing here."""

    code = "not_found"
    status = 404


# -- the state does not allow it ---------------------------------------------------------------------------------


class Conflict(ParityError):
    """The state does not allow this."""

    code = "conflict"
    status = 409


class LeaseConflict(Conflict):
    """Another claim holds this task."""

    code = "lease_conflict"


class StaleFence(Conflict):
    """The lease has moved on: this fence is no longer the current one."""

    code = "stale_fence"


class TaskCancelled(Conflict):
    """The task was cancelled."""

    code = "cancelled"


class NodeInUse(Conflict):
    """This node's key is in use by another machine."""

    code = "node_in_use"
    next_step = "Stop the other agent, or give this machine its own key with `parity node init`."


class InvalidTransition(Conflict):
    """The task cannot go from its state to that one."""

    code = "invalid_transition"


class NotFinished(Conflict):
    """It has not ended yet."""

    code = "not_finished"
    retryable = True
    next_step = "It goes on without you: ask again later, or wait longer."


# -- understood and refused --------------------------------------------------------------------------------------


class Unprocessable(ParityError):
    """The request was understood and refused."""

    code = "unprocessable"
    status = 422


class ClaimRefused(Unprocessable):
    """The claim was refused."""

    code = "claim_refused"


class StakeTooLow(Unprocessable):
    """The node's bond is below what the market requires."""

    code = "stake_too_low"
    next_step = "Stake more with `parity node stake --amount N`; `parity node balance` shows the bond."


class EscrowTooLow(Unprocessable):
    """The escrow set aside for this market does not cover the reward."""

    code = "escrow_too_low"
    next_step = "Set more aside with `parity wallet deposit` and `parity wallet allow`."


class PolicyDenied(Unprocessable):
    """A policy does not allow this."""

    code = "policy_denied"


class TooFewUpdates(Unprocessable):
    """Too few usable updates came for the aggregation rule to keep its promise."""

    code = "too_few_updates"
    next_step = "Ask for more participants, or choose a smaller `num_malicious`."

    def __init__(
        self, message: str = "", *, hint: str = "", field: str = "", rejected: Mapping[int, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint, field=field)
        self.rejected = dict(rejected or {})  # reason by part: others may still come


# -- somebody does not answer ------------------------------------------------------------------------------------


class Unavailable(ParityError):
    """A dependency does not answer."""

    code = "unavailable"
    status = 503
    retryable = True

    def __init__(
        self, message: str = "", *, hint: str = "", field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint, field=field)
        self.retry_after_s = retry_after_s


class Unreachable(Unavailable):
    """The other side cannot be reached."""

    code = "unreachable"
    next_step = "Check that it runs and that its address is right."


class ChainUnavailable(Unavailable):
    """The chain's RPC endpoint does not answer."""

    code = "chain_unavailable"
    next_step = "Check BLOCKCHAIN_RPC; work goes on and payouts resume when it is back."


class Overloaded(Unavailable):
    """Too many requests at once."""

    code = "overloaded"


class StorageFull(Unavailable):
    """There is no room left on the disk."""

    code = "storage_full"
    status = 507


# -- execution ---------------------------------------------------------------------------------------------------


class ExecutionFailed(ParityError):
    """The task did not end well."""

    code = "execution_failed"
    status = 422

    def __init__(self, reason: FailureReason, message: str = "", *, hint: str = "", field: str = "") -> None:
        super().__init__(message, hint=hint, field=field)
        self.reason = reason


# -- configuration and ourselves ---------------------------------------------------------------------------------


class ConfigInvalid(ParityError):
    """The configuration is not valid."""

    code = "config_invalid"
    status = 500

    def __init__(self, problems: list[str]) -> None:
        """Carry every problem at once: each names the key, what came and what was expected."""
        self.problems = problems
        super().__init__("the configuration is not valid:\n" + "\n".join(f"  {problem}" for problem in problems))


class Internal(ParityError):
    """An internal check failed; this is our fault."""

    code = "internal"


def error_for_code(code: str) -> type[ParityError]:
    """Return the class that a wire ``code`` stands for, or ``ParityError`` when it is not one we know."""
    return _BY_CODE.get(code, ParityError)


def _index(cls: type[ParityError]) -> dict[str, type[ParityError]]:
    found = {cls.code: cls}
    for child in cls.__subclasses__():
        found |= _index(child)
    return found


_BY_CODE = _index(ParityError)
