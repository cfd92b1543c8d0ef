"""Which content a spec names, and which field is wrong when it names none."""

from __future__ import annotations

import json

import pytest

from parity_blobs import Cid, cid_of_bytes
from parity_blobs.spec_cids import cids_of_spec, names_of
from parity_protocol.errors import BadField
from parity_protocol.task import parse_spec

GOOD = str(cid_of_bytes(b"good"))


def cids(**fields: object) -> list[str]:
    return [str(cid) for cid in cids_of_spec(parse_spec(json.dumps(fields)))]


def test_inputs_archives_and_data_sets_are_named() -> None:
    data = {"kind": "cid", "cid": GOOD}

    assert cids(type="command", command=["true"], inputs=[data, {"kind": "shard", "name": "s", "shard": "x"}]) == [GOOD]
    assert cids(type="docker", image="busybox", image_tar=data) == [GOOD]
    assert cids(type="federated_learning", dataset_cid=GOOD) == [GOOD]
    assert cids(type="federated_learning") == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"type": "command", "command": ["true"], "inputs": [{"kind": "cid", "cid": "Qm"}]}, "spec.inputs.0.cid"),
        ({"type": "docker", "image": "busybox", "image_tar": {"kind": "cid", "cid": "x1"}}, "spec.image_tar.cid"),
        ({"type": "federated_learning", "dataset_cid": "bafy"}, "spec.dataset_cid"),
    ],
)
def test_what_is_no_cid_is_refused_by_its_field(fields: dict[str, object], field: str) -> None:
    with pytest.raises(BadField) as caught:
        cids(**fields)

    assert caught.value.field == field
    assert "is not a CID" in caught.value.message


def test_a_node_has_a_name_in_both_versions_and_a_raw_block_one() -> None:
    node = cid_of_bytes(b"x" * 300_000)

    assert names_of(node) == (str(node), str(Cid(0, node.codec, node.digest)))
    assert names_of(Cid.parse(GOOD)) == (GOOD,)
