"""A strict safetensors codec: the only form in which models and updates travel (FL1).

The layout is safetensors': 8 bytes little-endian header length, a JSON header, the tensors' bytes. Beyond what the
library checks, a document here must tile its body exactly, use one of six dtypes, and stay under its caps; nothing is
allocated that the caps do not allow. Encoding is deterministic: equal tensors give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.limits import MAX_HEADER_BYTES
from parity_protocol import strict_json
from parity_protocol.errors import BadDocument, TooLarge

__all__ = ["Tensor", "decode_tensors", "encode_tensors", "take"]

Tensor = NDArray[Any]  # one of the dtypes below; `take` narrows it

_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_TENSORS: Final = 256
_LENGTH_BYTES: Final = 8


def encode_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the safetensors document of ``tensors`` (F64, F32, F16, I8, I32 or U32) and ``metadata``."""
    header: dict[str, object] = {"__metadata__": {name: metadata[name] for name in sorted(metadata)}}
    bodies: list[memoryview] = []
    offset = 0
    # Wide types first, as the library does: every tensor then starts at a multiple of its own width.
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        tensor = tensors[name]
        dtype = tensor.dtype.newbyteorder("<")
        body = np.ascontiguousarray(tensor, dtype=dtype).reshape(-1).view(np.uint8).data  # `join` copies once
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + body.nbytes],
        }
        bodies.append(body)
        offset += body.nbytes
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % _LENGTH_BYTES)
    return b"".join([len(head).to_bytes(_LENGTH_BYTES, "little"), head, *bodies])


def decode_tensors(data: bytes | memoryview, *, max_bytes: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a document that somebody else made.

    Args:
        data: The whole document; a view of a mapped file is not copied.
        max_bytes: Cap on its length.

    Returns:
        Read-only tensors by name, and the metadata.

    Raises:
        TooLarge: Over ``max_bytes``.
        BadDocument: Anything else that is not exactly the format.
    """
    if len(data) > max_bytes:
        raise TooLarge(f"the tensor document is {len(data)} bytes long, at most {max_bytes} are allowed")
    if len(data) < _LENGTH_BYTES:
        _fail("shorter than its length field")
    head_size = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if head_size > min(MAX_HEADER_BYTES, len(data) - _LENGTH_BYTES):
        _fail(f"header length {head_size} is more than there is or than {MAX_HEADER_BYTES}")
    header = _header(bytes(data[_LENGTH_BYTES : _LENGTH_BYTES + head_size]))
    metadata = _metadata(header.pop("__metadata__", {}))
    if len(header) > _MAX_TENSORS:
        _fail(f"{len(header)} tensors, at most {_MAX_TENSORS} are allowed")

    body = memoryview(data)[_LENGTH_BYTES + head_size :]
    spans: list[tuple[int, int]] = []
    tensors: dict[str, Tensor] = {}
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry, len(body))
        spans.append((begin, end))
        tensors[name] = np.frombuffer(body[begin:end], dtype=dtype).reshape(shape)
    # Gaps and overlaps would let two readers see two documents in the same bytes.
    end_of_last = 0
    for begin, end in sorted(spans):
        if begin != end_of_last:
            _fail(f"the tensors leave a gap or overlap at byte {min(begin, end_of_last)}")
        end_of_last = end
    if end_of_last != len(body):
        _fail(f"{len(body) - end_of_last} bytes belong to no tensor")
    return tensors, metadata


def take(tensors: Mapping[str, Tensor], name: str, dtype: str, dimensions: int) -> Tensor:
    """Return a tensor of the expected type (``F64`` …), number of dimensions and, for floats, finite values.

    Raises:
        BadDocument: It is missing or differs.
    """
    tensor = tensors.get(name)
    if tensor is None:
        _fail(f"tensor {name} is missing")
    if tensor.dtype != _DTYPES[dtype] or tensor.ndim != dimensions:
        _fail(f"tensor {name} must be {dtype} with {dimensions} dimensions")
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        _fail(f"tensor {name} has NaN or Inf values")
    return tensor


def _header(head: bytes) -> dict[str, strict_json.JsonValue]:
    document = strict_json.loads(head, max_bytes=MAX_HEADER_BYTES, max_depth=3)
    if not head.startswith(b"{") or not isinstance(document, dict):
        _fail("the header is not a JSON object")
    return document


def _metadata(raw: object) -> dict[str, str]:
    if not isinstance(raw, dict):
        _fail("__metadata__ is not an object")
    metadata: dict[str, str] = {}
    for name, value in raw.items():
        if not isinstance(value, str):
            _fail("__metadata__ has a value that is not a string")
        metadata[name] = value
    return metadata


def _entry(name: str, entry: object, body_size: int) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    shown = ascii(name[:40])
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _fail(f"tensor {shown} must have dtype, shape and data_offsets")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        _fail(f"tensor {shown} must be one of {', '.join(_DTYPES)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or len(shape) > 2 or not all(_is_size(size, body_size) for size in shape):
        _fail(f"tensor {shown} must have at most two dimensions that fit the document")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(at, body_size) for at in offsets):
        _fail(f"tensor {shown} has offsets outside the document")
    begin, end = offsets
    size = dtype.itemsize
    for length in shape:
        size *= length
    if end - begin != size:
        _fail(f"tensor {shown} has {end - begin} bytes, its shape needs {size}")
    return dtype, tuple(shape), begin, end


def _is_size(value: object, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit


def _fail(message: str) -> NoReturn:
    raise BadDocument(f"not a tensor document: {message}")
