"""Problem documents (RFC 9457): how the market says no."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from parity_protocol.errors import (
    Forbidden,
    NotFound,
    Overloaded,
    ParityError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unreachable,
    error_for_code,
)

__all__ = ["PROBLEM_CONTENT_TYPE", "FieldProblem", "Problem", "error_of", "error_of_answer", "problem_of"]

PROBLEM_CONTENT_TYPE = "application/problem+json"

_BY_STATUS: dict[int, type[ParityError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    413: TooLarge,
    429: Overloaded,
}


class FieldProblem(BaseModel):
    """One field that is wrong."""

    model_config = ConfigDict(frozen=True)

    field: str
    message: str


class Problem(BaseModel):
    """What went wrong and what to do next. It never echoes what came."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str = "about:blank"
    title: str
    status: int = Field(ge=400, le=599)
    code: str
    detail: str = ""
    hint: str = ""
    field: str = ""
    errors: tuple[FieldProblem, ...] = ()
    retryable: bool = False
    market_time: Annotated[str, StringConstraints(max_length=40)] = ""  # with clock_skew


def problem_of(error: ParityError) -> Problem:
    """Return the document for one of our errors."""
    title = (type(error).__doc__ or "").strip().splitlines()[0]
    return Problem(
        title=title,
        status=error.status,
        code=error.code,
        detail=error.message,
        hint=error.hint(),
        field=error.field,
        retryable=error.retryable,
    )


def error_of(problem: Problem) -> ParityError:
    """Return the error that a problem document stands for, so that a client raises what the market raised."""
    cls = error_for_code(problem.code)
    message = problem.detail or problem.title
    error = (
        ParityError(message) if cls.__init__ is not ParityError.__init__ and not _takes_message(cls) else cls(message)
    )
    error.field = problem.field
    error._hint = problem.hint or error._hint  # noqa: SLF001 - the market's advice replaces the class's
    return error


def error_of_answer(
    status: int, body: bytes, *, sender: str, retry_after: str = "", max_retry_after_s: float
) -> ParityError:
    """Return the error that an HTTP answer stands for, so that a client raises what the market raised.

    Without a problem document the status decides, since a proxy may have answered in the market's place. A status
    that says nothing about the request, such as a redirect, is ``Unreachable``: what answers there is no market, and
    nobody may drop a report because of it.

    Args:
        status: Anything but 2xx.
        sender: Who answered, for people, such as ``the market at https://market.example``.
        retry_after: The header's text, empty without one. Only its form in seconds is read.
        max_retry_after_s: Most of it that is believed.
    """
    try:
        error = error_of(Problem.model_validate_json(body))
    except ValidationError:
        kind = Unavailable if status >= 500 else _BY_STATUS.get(status, Unreachable)
        error = kind(f"{sender} answered with status {status}")
    if status == 429 and not isinstance(error, Unavailable):
        error = Overloaded(error.message)
    if isinstance(error, Unavailable):
        error.retry_after_s = _seconds(retry_after, max_retry_after_s)
    return error


def _seconds(text: str, most: float) -> float | None:
    return min(float(text), most) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def _takes_message(cls: type[ParityError]) -> bool:
    return cls.__name__ not in {"ExecutionFailed", "ConfigInvalid"}
