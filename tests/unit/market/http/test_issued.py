"""Manifests that come back to who signed them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from parity_market.issued import IssuedManifests

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=10)


def _remembering(*tokens: str, most: int = 10) -> IssuedManifests:
    made = IssuedManifests(most)
    for token in tokens:
        made.remember(
            token, task_id=f"task of {token}", node_id="node", jti=f"jti of {token}", attempt=2, expires_at=LATER
        )
    return made


def test_a_token_signed_here_is_known() -> None:
    found = _remembering("a", "b").find("a", "node", NOW)

    assert found is not None
    assert (found.task_id, found.jti, found.attempt) == ("task of a", "jti of a", 2)


def test_another_token_another_node_and_a_later_time_are_not() -> None:
    issued = _remembering("a")

    assert issued.find("A", "node", NOW) is None
    assert issued.find("a", "other", NOW) is None
    assert issued.find("a", "node", LATER) is None


def test_the_oldest_is_forgotten_first() -> None:
    issued = _remembering("a", "b", "c", most=2)

    assert [issued.find(token, "node", NOW) is not None for token in "abc"] == [False, True, True]
