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
    """Answers one after the other: where the session is, its state, and its rounds."""

    def __init__(self, *answers: tuple[int, str, list[FlRoundReply]]) -> None:
        self._answers = list(answers)

    async def show(self, session_id: str, *, from_round: int = 1, **_: Any) -> FlSessionReply:
        number, state, rounds = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        listed = [one for one in rounds if one.round >= from_round][:PAGE]
        fields = {"id": session_id, "state": state, "round": number, "phase": 0, "total_rounds": number - 1}
        return FlSessionReply.model_validate({**fields, "created_at": NOW, "updated_at": NOW, "rounds": listed})


async def followed(sessions: FlSessions) -> list[tuple[int, int]]:
    return [(one.round, one.phase) async for _, closed in sessions.follow("s") for one in closed]


async def test_a_session_that_has_long_ended_is_shown_to_its_last_round() -> None:
    sessions = Scripted((501, "completed", [_round(number) for number in range(1, 501)]))

    assert await followed(sessions) == [(number, 0) for number in range(1, 501)]


async def test_a_round_in_phases_is_shown_with_all_of_them_once_it_has_closed() -> None:
    open_one = _round(1, 1, "open")
    sessions = Scripted(
        (1, "running", [_round(1, 0), open_one]),
        (2, "completed", [_round(1, 0), _round(1, 1), _round(1, 2)]),
    )

    assert await followed(sessions) == [(1, 0), (1, 1), (1, 2)]


async def test_following_a_session_that_failed_in_a_round_ends() -> None:
    sessions = Scripted((3, "failed", [_round(1), _round(2), _round(3, state="open")]))

    assert await followed(sessions) == [(1, 0), (2, 0)]
