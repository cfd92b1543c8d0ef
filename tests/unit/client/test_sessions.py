"""Following a session that trains in rounds: every round once, to the last one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from parity_client.federated import FlSessions
from parity_protocol.api.rounds import FlRoundReply, FlSessionReply

NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
PAGE = 200  # rounds and phases that the market lists at once


def _round(number: int, phase: int = 0, state: str = "closed") -> FlRoundReply:
    fields = {"round": number, "phase": phase, "state": state, "base": "ab" * 32, "base_size": 1, "cohort": (0,)}
    return FlRoundReply.model_validate({**fields, "opened_at": NOW})


class Scripted(FlSessions):
    """Answers one after the other: where the session is, its state, and its rounds.

    As the market, it waits while the session is not past what it is asked about: that goes on to the next answer.
    """

    def __init__(self, *answers: tuple[int | tuple[int, int], str, list[FlRoundReply]]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def show(
        self, session_id: str, *, from_round: int = 1, from_phase: int = 0, after_round: int = 0, **more: Any
    ) -> FlSessionReply:
        self.asked += 1
        where, state, rounds = self._answers[0]
        number, phase = (where, 0) if isinstance(where, int) else where
        if (number, phase) <= (after_round, more["after_phase"]) and len(self._answers) > 1:
            del self._answers[0]
            where, state, rounds = self._answers[0]
            number, phase = (where, 0) if isinstance(where, int) else where
        listed = [one for one in rounds if (one.round, one.phase) >= (from_round, from_phase)][:PAGE]
        fields = {"id": session_id, "state": state, "round": number, "phase": phase, "total_rounds": 1}
        return FlSessionReply.model_validate({**fields, "created_at": NOW, "updated_at": NOW, "rounds": listed})


async def followed(sessions: FlSessions) -> list[tuple[int, int]]:
    return [(one.round, one.phase) async for _, closed in sessions.follow("s") for one in closed]


async def test_a_session_that_has_long_ended_is_shown_to_its_last_round() -> None:
    sessions = Scripted((501, "completed", [_round(number) for number in range(1, 501)]))

    assert await followed(sessions) == [(number, 0) for number in range(1, 501)]


async def test_a_round_in_phases_is_shown_phase_by_phase() -> None:
    sessions = Scripted(
        ((1, 1), "running", [_round(1, 0), _round(1, 1, "open")]),
        (2, "completed", [_round(1, 0), _round(1, 1), _round(1, 2)]),
    )

    seen = [[(one.round, one.phase) for one in closed] async for _, closed in sessions.follow("s")]

    assert seen == [[(1, 0)], [(1, 1), (1, 2)], []]


async def test_a_round_with_more_phases_than_a_page_is_shown_to_its_last_one() -> None:
    phases = [_round(1, phase) for phase in range(450)]
    sessions = Scripted((3, "completed", [*phases, _round(2)]))

    assert await followed(sessions) == [*((1, phase) for phase in range(450)), (2, 0)]


async def test_a_session_whose_parts_report_is_not_asked_about_again_and_again() -> None:
    sessions = Scripted((2, "done", [_round(1)]), (2, "completed", [_round(1)]))

    assert await followed(sessions) == [(1, 0)]
    assert sessions.asked == 3  # two that had an answer at once, and one that waited


async def test_following_a_session_that_failed_in_a_round_ends() -> None:
    sessions = Scripted((3, "failed", [_round(1), _round(2), _round(3, state="open")]))

    assert await followed(sessions) == [(1, 0), (2, 0)]
