"""Sealed sources of parts: signed by their hash, shown to one node each."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parity_protocol.errors import BadField, DigestMismatch
from parity_protocol.needs import CidInput, HttpsInput, ShardInput
from parity_protocol.shards import SALT_BYTES, open_shard, open_shards, seal_shard, shard_digest
from parity_protocol.task import FederatedLearningSpec, parse_spec, parts_of

SALT = bytes(range(SALT_BYTES))
SOURCES = (
    CidInput(cid="bafkqaaa", max_bytes=100),
    HttpsInput(url="https://example.org/a.csv", sha256="ab" * 32, size=7),
    ShardInput(shard="hospital-a"),
)


def spec(**changes: Any) -> str:
    members = {
        "type": "federated_learning",
        "data_mode": "sharded",
        "shards": [shard_digest(seal_shard(source, SALT)) for source in SOURCES],
        **changes,
    }
    return json.dumps({name: value for name, value in members.items() if value is not None})


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.kind))
def test_what_is_sealed_opens_to_the_same_source(source: Any) -> None:
    text = seal_shard(source, SALT)

    assert open_shard(text, shard_digest(text)).source == source


def test_the_same_source_with_another_salt_has_another_hash() -> None:
    assert shard_digest(seal_shard(SOURCES[2], SALT)) != shard_digest(seal_shard(SOURCES[2], SALT[::-1]))


def test_another_text_than_was_signed_is_refused() -> None:
    signed = shard_digest(seal_shard(SOURCES[0], SALT))

    with pytest.raises(DigestMismatch):
        open_shard(seal_shard(SOURCES[1], SALT), signed)


@pytest.mark.parametrize(
    "text",
    [
        '{"source":{"kind":"shard","shard":"a"}}',
        '{"source":{"kind":"shard","shard":"/etc/passwd"},"salt":"' + "0" * 32 + '"}',
        '{"source":{"kind":"https","url":"http://example.org/a"},"salt":"' + "0" * 32 + '"}',
        '{"source":{"kind":"shard","shard":"a"},"salt":"' + "0" * 32 + '","salt":"' + "1" * 32 + '"}',
        "\ud800",
    ],
)
def test_what_is_no_source_is_refused_with_the_part(text: str) -> None:
    good = seal_shard(SOURCES[0], SALT)

    with pytest.raises(BadField, match="part 1") as caught:
        open_shards([good, text], [shard_digest(good), shard_digest(text)])

    assert caught.value.field == "shards.1"


def test_a_missing_shard_is_refused() -> None:
    with pytest.raises(BadField, match="signs 1 shards, 0 came"):
        open_shards([], ["0" * 64])


def test_a_salt_of_another_length_is_refused() -> None:
    with pytest.raises(BadField, match="16 bytes"):
        seal_shard(SOURCES[0], b"short")


def test_a_sharded_session_has_a_part_for_each_shard() -> None:
    found = parse_spec(spec())

    assert isinstance(found, FederatedLearningSpec)
    assert parts_of(found) == len(SOURCES)
    assert found.session()["shards"] == list(found.shards)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"shards": []}, "spec.shards"),
        ({"dataset_cid": "bafy"}, "spec.dataset_cid"),
        ({"inputs": [{"kind": "cid", "cid": "bafy"}]}, "spec.dataset_cid"),
        ({"partition_config": {"total_parts": 2}}, "spec.partition_config"),
        ({"data_mode": "partitioned"}, "spec.data_mode"),
        ({"data_mode": None, "shards": None, "eval_cid": "bafy"}, "spec.data_mode"),
        ({"shards": ["AB" * 32]}, "spec.shards.0"),
    ],
)
def test_data_modes_are_not_mixed(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as caught:
        parse_spec(spec(**changes))

    assert caught.value.field == field
