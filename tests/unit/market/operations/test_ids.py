"""Ids that the market makes."""

from __future__ import annotations

import uuid

from parity_market.operations.context import new_id


def test_ids_are_uuids_of_version_7_that_sort_as_they_were_made() -> None:
    made = [new_id() for _ in range(2_000)]

    assert {(uuid.UUID(one).version, uuid.UUID(one).variant) for one in made} == {(7, uuid.RFC_4122)}
    assert made == sorted(made)


def test_ids_cannot_be_guessed_from_each_other() -> None:
    tails = {new_id()[-12:] for _ in range(2_000)}

    assert len(tails) == 2_000
