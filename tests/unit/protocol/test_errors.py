"""The error taxonomy: closed, stable, in words, and clear about who is to blame."""

from __future__ import annotations

import pytest

from parity_protocol import errors
from parity_protocol.api.problem import error_of_answer, problem_of
from parity_protocol.errors import Blame, FailureReason, ParityError, Unavailable, error_for_code


def classes(of: type[ParityError] = ParityError) -> list[type[ParityError]]:
    return [
        found
        for child in of.__subclasses__()
        if child.__module__ == errors.__name__
        for found in (child, *classes(child))
    ]


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_each_class_has_a_code_of_its_own_that_leads_back_to_it(cls: type[ParityError]) -> None:
    same = [other for other in classes() if other.code == cls.code]

    assert same == [cls]
    assert error_for_code(cls.code) is cls
    assert 400 <= cls.status <= 599


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_the_docstring_is_the_default_message(cls: type[ParityError]) -> None:
    assert cls.__doc__
    if cls in (errors.ConfigInvalid, errors.ExecutionFailed):
        return  # they say what happened in every case

    error = cls()

    assert error.message == cls.__doc__.strip().splitlines()[0]
    assert isinstance(error.hint(), str)


def test_a_code_that_is_not_known_is_still_an_error() -> None:
    assert error_for_code("invented_tomorrow") is ParityError


def test_only_what_another_try_may_mend_is_retryable() -> None:
    retryable = {cls.__name__ for cls in classes() if cls.retryable}

    assert {"Unavailable", "Unreachable", "ChainUnavailable", "Overloaded", "StorageFull"} <= retryable
    assert not retryable & {"BadSignature", "Forbidden", "Conflict", "StaleFence", "BadField", "TaskCancelled"}


@pytest.mark.parametrize("reason", list(FailureReason))
def test_each_reason_blames_exactly_one(reason: FailureReason) -> None:
    assert isinstance(reason.blame, Blame)
    assert FailureReason.parse(reason.value) is reason


@pytest.mark.parametrize("blame", list(Blame))
def test_an_unknown_reason_folds_to_its_blames_general_one(blame: Blame) -> None:
    folded = FailureReason.parse("a_word_of_the_next_version", blame)

    assert folded.blame is blame


def test_a_problem_document_has_what_programs_and_people_need() -> None:
    problem = problem_of(errors.BadField("alpha must be > 0, got 0", field="spec.alpha", hint="Set alpha."))

    assert (problem.code, problem.status, problem.field, problem.retryable) == ("bad_field", 422, "spec.alpha", False)
    assert problem.detail == "alpha must be > 0, got 0"
    assert problem.hint == "Set alpha."


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("999999", 60.0),
        ("soon", None),
        ("\u00b2", None),
        ("\u0663", None),
        ("1" * 10, None),
        ("-1", None),
        ("", None),
    ],
)
def test_only_a_plain_number_of_seconds_is_read_from_retry_after(text: str, seconds: float | None) -> None:
    error = error_of_answer(503, b"", sender="the market", retry_after=text, max_retry_after_s=60)

    assert isinstance(error, Unavailable)
    assert error.retry_after_s == seconds


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (307, "unreachable"),
        (401, "unauthenticated"),
        (404, "not_found"),
        (413, "too_large"),
        (429, "overloaded"),
        (502, "unavailable"),
    ],
)
def test_an_answer_without_a_problem_document_is_judged_by_its_status(status: int, code: str) -> None:
    error = error_of_answer(status, b"<html>", sender="the market", max_retry_after_s=60)

    assert (error.code, str(error)) == (code, f"the market answered with status {status}")
