"""The importer against what a real Kubo answered (`scripts/record-unixfs-vectors`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_blobs.cid import Block
from parity_blobs.export import iter_file
from parity_blobs.files import cid_of_path
from parity_blobs.importer import CHUNK_BYTES, AddOptions, Entry, FileImporter, build_directory, cid_of_bytes
from parity_blobs.testing import deterministic_bytes, wide_names, write_tree
from parity_protocol.errors import BadDocument, InvalidInput, TooLarge

VECTORS = Path(__file__).parents[2] / "vectors" / "unixfs"
FILES = json.loads((VECTORS / "files.json").read_text(encoding="utf-8"))["cases"]
FOLDERS = json.loads((VECTORS / "folders.json").read_text(encoding="utf-8"))["cases"]
OPTIONS = {
    "default": AddOptions(0),
    "v1": AddOptions(1),
    "v0-raw-leaves": AddOptions(0, raw_leaves=True),
    "v1-dag-pb-leaves": AddOptions(1, raw_leaves=False),
}


def import_bytes(data: bytes, options: AddOptions, piece: int = 1 << 20) -> tuple[str, list[Block]]:
    importer = FileImporter(options)
    blocks = [block for at in range(0, len(data), piece) for block in importer.feed(data[at : at + piece])]
    done = importer.finish()
    return str(done.cid), [*blocks, *done.blocks]


@pytest.mark.parametrize("case", FILES, ids=lambda case: case["name"])
def test_file_has_the_cids_that_kubo_gives(case: dict[str, Any]) -> None:
    data = deterministic_bytes(case["seed"], case["size"])  # which takes longer than the four imports

    found = {flags: import_bytes(data, options) for flags, options in OPTIONS.items()}

    assert {flags: cid for flags, (cid, _) in found.items()} == case["cids"]
    assert {flags: str(blocks[-1].cid) for flags, (_, blocks) in found.items()} == case["cids"]


@pytest.mark.anyio
@pytest.mark.parametrize("case", FOLDERS, ids=lambda case: case["name"])
async def test_folder_has_the_cids_that_kubo_gives_or_is_refused(case: dict[str, Any], tmp_path: Path) -> None:
    write_tree(case["tree"], tmp_path / "input")
    found = {}

    for flags, options in OPTIONS.items():
        try:
            done = await cid_of_path(tmp_path / "input", cid_version=options.cid_version, raw_leaves=options.raw_leaves)
            found[flags] = str(done.cid)
        except TooLarge as exc:
            found[flags] = "sharded" if "sharding" in exc.message else exc.message

    assert found == {flags: "sharded" if flags in case["sharded"] else case["cids"][flags] for flags in OPTIONS}


def test_vectors_hold_both_sides_of_the_sharding_limit() -> None:
    assert {tuple(case["sharded"]) for case in FOLDERS} >= {(), tuple(OPTIONS)}


@settings(max_examples=15)
@given(
    st.integers(0, 3 * CHUNK_BYTES + 5),
    st.lists(st.integers(1, CHUNK_BYTES + 3), min_size=1, max_size=5),
    st.sampled_from(list(OPTIONS.values())),
)
def test_how_the_bytes_arrive_does_not_matter_and_they_come_back(
    size: int, cuts: list[int], options: AddOptions
) -> None:
    data = deterministic_bytes(99, size)
    importer, blocks, at = FileImporter(options), list[Block](), 0
    while at < size:
        for cut in cuts:
            blocks += importer.feed(data[at : at + cut])
            at += cut
    done = importer.finish()
    held = {block.cid: block.data for block in (*blocks, *done.blocks)}

    assert str(done.cid) == import_bytes(data, options)[0]
    assert done.size == size
    assert b"".join(iter_file(done.cid, held.__getitem__, max_bytes=size)) == data


def test_cid_of_bytes_is_what_a_store_uses() -> None:
    assert str(cid_of_bytes(b"")) == FILES[0]["cids"]["v1"]
    assert str(cid_of_bytes(b"", version=0)) == FILES[0]["cids"]["default"]
    assert str(cid_of_bytes(b"", version=0, raw=True)) == FILES[0]["cids"]["v0-raw-leaves"]


def test_order_of_entries_does_not_matter() -> None:
    entries = [Entry(name, cid_of_bytes(name.encode()), 1) for name in ("b", "a", "é", "Z")]

    assert build_directory(entries).cid == build_directory(reversed(entries)).cid


def test_a_folder_over_the_limit_is_refused_with_a_way_out() -> None:
    entries = [Entry(name, cid_of_bytes(b""), 0) for name in wide_names(2048, 92, 1)]

    with pytest.raises(TooLarge, match="needs sharding") as caught:
        build_directory(entries)

    assert "sub-directories" in caught.value.hint()


@pytest.mark.parametrize("names", [["a", "a"], [".."], ["a/b"], [""], ["\ud800"]])
def test_names_that_cannot_be_entries_are_refused(names: list[str]) -> None:
    with pytest.raises(BadDocument):
        build_directory([Entry(name, cid_of_bytes(b""), 0) for name in names])


def test_an_importer_ends_once() -> None:
    importer = FileImporter()
    importer.finish()

    with pytest.raises(InvalidInput):
        importer.feed(b"x")
    with pytest.raises(InvalidInput):
        importer.finish()


def test_another_cid_version_is_refused() -> None:
    with pytest.raises(InvalidInput):
        AddOptions(2)
