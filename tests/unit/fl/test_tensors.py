from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_fl.tensors import decode_tensors, encode_tensors, take
from parity_protocol.errors import BadDocument, TooLarge

TENSORS = {
    "odd": np.array([1, -2, 3], dtype=np.int32),
    "wide": np.array([[0.5, -1.5], [2.5, 1e300]], dtype=np.float64),
    "small": np.array([[1.5], [2.5]], dtype=np.float32),
    "count": np.array([7], dtype=np.uint32),
    "none": np.zeros((0, 3), dtype=np.float32),
}


def document(header: object, body: bytes = b"", *, length: int | None = None) -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(head) if length is None else length).to_bytes(8, "little") + head + body


def tensor(begin: int = 0, end: int = 8, *, dtype: str = "F64", shape: object = (1,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def test_the_library_reads_what_we_write():
    data = encode_tensors(TENSORS, {"who": "Zoë 😀", "a": "1"})

    found = safetensors.numpy.load(data)

    assert set(found) == set(TENSORS)
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == expected.dtype


def test_we_read_what_the_library_writes():
    data = safetensors.numpy.save(TENSORS, metadata={"who": "Zoë"})

    found, metadata = decode_tensors(data, max_bytes=10_000)

    assert metadata == {"who": "Zoë"}
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(found[name], expected)


def test_equal_tensors_give_equal_bytes_in_any_order():
    backwards = dict(reversed(TENSORS.items()))

    assert encode_tensors(TENSORS, {"a": "1", "b": "2"}) == encode_tensors(backwards, {"b": "2", "a": "1"})


def test_what_was_read_cannot_be_written_to():
    found, _ = decode_tensors(encode_tensors(TENSORS, {}), max_bytes=10_000)

    assert not any(array.flags.writeable for array in found.values())


HOSTILE = {
    "empty": b"",
    "short length": b"\x01\x00",
    "header longer than the document": document({}, length=10**6),
    "header length of 2^64 - 1": b"\xff" * 8 + b"{}",
    "not JSON": document(b"{nope"),
    "not an object": document([]),
    "leading space": document(b" {}"),
    "not UTF-8": document(b'{"\xff": 1}'),
    "duplicate tensor": document(b'{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},'
                                 b'"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}', bytes(8)),
    "deep header": document(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a number of 5,000 digits": document(b'{"a":{"dtype":"F64","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', bytes(8)),
    "metadata that is a list": document({"__metadata__": []}),
    "metadata with a number": document({"__metadata__": {"a": 1}}),
    "metadata with a lone surrogate": document(b'{"__metadata__":{"a":"\\ud800"}}'),
    "unknown dtype": document({"a": tensor(0, 8, dtype="I64")}, bytes(8)),
    "dtype that is a list": document({"a": {"dtype": [], "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
    "pickled objects": document({"a": tensor(0, 8, dtype="O")}, bytes(8)),
    "missing member": document({"a": {"dtype": "F64", "shape": [1]}}, bytes(8)),
    "surplus member": document({"a": {**tensor(), "x": 1}}, bytes(8)),
    "shape that is a number": document({"a": tensor(shape=1)}, bytes(8)),
    "three dimensions": document({"a": tensor(shape=(1, 1, 1))}, bytes(8)),
    "negative size": document({"a": tensor(shape=(-1,))}, bytes(8)),
    "boolean size": document({"a": tensor(shape=[True])}, bytes(8)),
    "fraction as a size": document({"a": tensor(shape=[1.0])}, bytes(8)),
    "sizes that overflow": document({"a": tensor(shape=(2**32, 2**32))}, bytes(8)),
    "sizes that multiply to too much": document({"a": tensor(shape=(8, 8))}, bytes(8)),
    "shape and offsets disagree": document({"a": tensor(0, 4)}, bytes(8)),
    "offsets behind the end": document({"a": tensor(0, 16, shape=(2,))}, bytes(8)),
    "offsets backwards": document({"a": tensor(8, 0)}, bytes(8)),
    "one offset": document({"a": {"dtype": "F64", "shape": [1], "data_offsets": [0]}}, bytes(8)),
    "overlap": document({"a": tensor(), "b": tensor()}, bytes(8)),
    "gap": document({"a": tensor(8, 16)}, bytes(16)),
    "bytes of nobody": document({"a": tensor()}, bytes(9)),
    "too many tensors": document({f"t{i}": tensor(0, 0, shape=(0,)) for i in range(257)}),
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_document_is_refused(data):
    with pytest.raises((BadDocument, TooLarge)):
        decode_tensors(data, max_bytes=1 << 24)


def test_document_over_its_cap_is_refused():
    with pytest.raises(TooLarge, match="at most 10 are allowed"):
        decode_tensors(bytes(11), max_bytes=10)


@settings(max_examples=300)
@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_a_changed_or_cut_document_is_refused_or_still_sound(place, byte, cut):
    data = bytearray(encode_tensors(TENSORS, {"a": "b"}))
    place %= len(data)
    data[place] = byte

    try:
        found, _ = decode_tensors(bytes(data[:place] if cut else data), max_bytes=10_000)
    except (BadDocument, TooLarge):
        return
    assert sum(array.nbytes for array in found.values()) <= len(data)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3, dtype=np.float32), "must be F64"),
        (np.zeros((3, 1), dtype=np.float64), "with 1 dimensions"),
        (np.array([0.0, np.nan]), "NaN or Inf"),
        (np.array([0.0, np.inf]), "NaN or Inf"),
        (None, "is missing"),
    ],
)
def test_a_tensor_of_another_kind_or_not_finite_is_refused(array, words):
    with pytest.raises(BadDocument, match=words):
        take({} if array is None else {"a": array}, "a", "F64", 1)
