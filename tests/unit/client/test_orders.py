"""Orders: what a submitter signs."""

from __future__ import annotations

import pytest

from parity_client.orders import sharded_spec, spec_text
from parity_protocol.errors import BadField
from parity_protocol.needs import CidInput, ShardInput
from parity_protocol.shards import open_shards

SOURCES = (CidInput(cid="bafkqaaa"), ShardInput(shard="hospital-a"))


def test_a_sharded_spec_names_no_source_and_each_opens_with_its_text() -> None:
    spec, sealed = sharded_spec({"type": "federated_learning"}, SOURCES)
    text = spec_text(spec)

    assert "hospital-a" not in text
    assert "bafkqaaa" not in text
    assert tuple(shard.source for shard in open_shards(sealed, spec["shards"])) == SOURCES


def test_the_same_sources_are_sealed_otherwise_each_time() -> None:
    first, again = (sharded_spec({"type": "federated_learning"}, SOURCES)[0]["shards"] for _ in range(2))

    assert set(first).isdisjoint(again)


@pytest.mark.parametrize("members", [{"dataset_cid": "bafkqaaa"}, {"shards": ["0" * 64]}])
def test_a_sharded_spec_has_no_data_of_its_own(members: dict[str, object]) -> None:
    with pytest.raises(BadField):
        sharded_spec({"type": "federated_learning", **members}, SOURCES)


def test_a_sharded_session_has_a_source() -> None:
    with pytest.raises(BadField):
        sharded_spec({"type": "federated_learning"}, ())
