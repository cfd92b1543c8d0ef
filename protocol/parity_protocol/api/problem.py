"""Problem documents (RFC 9457): how the market says no."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from parity_protocol.errors import ParityError, error_for_code

__all__ = ["PROBLEM_CONTENT_TYPE", "FieldProblem", "Problem", "error_of", "problem_of"]

PROBLEM_CONTENT_TYPE = "application/problem+json"


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


def _takes_message(cls: type[ParityError]) -> bool:
    return cls.__name__ not in {"ExecutionFailed", "ConfigInvalid"}
