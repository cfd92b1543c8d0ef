"""Updates as bytes in three formats: what comes back, what is refused, what is carried over."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from parity_fl.aggregate import Update
from parity_fl.aggregate.layout import Block, take_block
from parity_fl.codec import (
    as_sent,
    decode_delta,
    decode_weights,
    encode_delta,
    encode_weights,
    largest_body,
    mapped_delta,
    pack,
    sent_weights,
)
from parity_fl.models.base import Weights
from parity_fl.rounds_config import UpdateFormat
from parity_fl.tensors import decode_tensors, encode_tensors
from parity_protocol.errors import BadDocument, InvalidInput, TooLarge

FORMATS: tuple[UpdateFormat, ...] = ("fp32", "fp16", "int8")
SHAPES = {"layer_00.bias": (5,), "layer_00.weight": (300, 7), "none": (0, 4)}


def delta(seed: int = 0, size: float = 0.01) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(size=shape) * size).astype(np.float32) for name, shape in SHAPES.items()}


def test_fp32_comes_back_bit_for_bit() -> None:
    body, left = encode_delta(delta(), "fp32")

    found = decode_delta(body, SHAPES)

    assert left is None
    for name, expected in delta().items():
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize(("update_format", "relative"), [("fp16", 1 / 2048), ("int8", 1 / 254)])
def test_a_smaller_format_is_off_by_no_more_than_its_step(update_format: UpdateFormat, relative: float) -> None:
    body, _ = encode_delta(delta(), update_format)

    found = decode_delta(body, SHAPES)

    for name, expected in delta().items():
        assert found[name].dtype == np.float32
        if expected.size == 0:
            continue
        bound = np.abs(expected) if update_format == "fp16" else np.abs(expected).max()
        assert (np.abs(found[name] - expected) <= relative * bound * 1.001 + 3e-8).all()


@pytest.mark.parametrize("update_format", FORMATS)
def test_equal_updates_are_equal_bytes_and_none_is_over_the_cap(update_format: UpdateFormat) -> None:
    one, two = encode_weights(delta(), update_format), encode_weights(delta(), update_format)

    assert one == two
    assert len(one) <= largest_body(SHAPES)


def test_sizes_are_four_two_and_one_byte_a_value() -> None:
    shapes = {"w": (1000, 1000)}
    weights = {"w": np.ones((1000, 1000), np.float32)}

    sizes = [len(encode_weights(weights, update_format)) for update_format in FORMATS]

    assert [round(size / 1e6, 2) for size in sizes] == [4.0, 2.0, 1.0]
    assert sizes[0] <= largest_body(shapes) < sizes[0] + 10_000


@pytest.mark.parametrize("size", [1e-33, 1e-20, 1e-8, 1e-4, 1.0, 1e10, 1e35])
def test_sixteen_bits_keep_eleven_of_every_value_whatever_their_size(size: float) -> None:
    values = np.random.default_rng(0).uniform(0.01, 1, 70_000).astype(np.float32) * np.float32(size)
    values *= np.random.default_rng(1).choice([-1, 1], values.shape).astype(np.float32)

    body = encode_weights({"w": values}, "fp16")
    found = decode_weights(body, {"w": values.shape})["w"]

    assert len(body) < 2 * values.size + 400
    np.testing.assert_allclose(found, values, rtol=1 / 2048, atol=np.finfo(np.float32).smallest_subnormal)


def test_a_value_that_no_scale_brings_into_half_precision_travels_in_full() -> None:
    weights = delta()
    weights["layer_00.bias"][0] = 3e38

    found = decode_weights(encode_weights(weights, "fp16"), SHAPES)

    np.testing.assert_array_equal(found["layer_00.bias"], weights["layer_00.bias"])


def test_sixteen_bits_without_a_scale_are_the_values_themselves() -> None:
    halves = {name: tensor.astype(np.float16) for name, tensor in delta().items()}

    found = decode_weights(encode_tensors(halves, {}), SHAPES)

    for name, tensor in halves.items():
        np.testing.assert_array_equal(found[name], tensor.astype(np.float32))


@pytest.mark.parametrize(("begin", "end"), [(0, 5000), (1023, 1025), (4999, 5000)])
def test_a_slice_of_sixteen_bits_is_the_slice_of_the_whole(begin: int, end: int) -> None:
    weights = {"w": np.random.default_rng(0).normal(scale=1e-7, size=(50, 100)).astype(np.float32)}
    body = encode_weights(weights, "fp16")

    tensor = mapped_delta(memoryview(body), {"w": (50, 100)})["w"]
    flat = tensor.reshape(-1)

    assert (tensor.shape, len(flat), flat.dtype) == ((50, 100), 5000, np.float32)
    np.testing.assert_array_equal(flat[begin:end], decode_delta(body, {"w": (50, 100)})["w"].reshape(-1)[begin:end])


def test_what_eight_bits_cannot_carry_comes_with_later_updates() -> None:
    # One large value makes the step of its block 0.01; the small ones would be lost for ever without feedback.
    steady = {"w": np.full(1024, 0.001, np.float32)}
    steady["w"][0] = 1.27
    received = np.zeros(1024)
    left: Weights | None = None
    for _ in range(100):
        body, left = encode_delta(steady, "int8", left=left)
        received += decode_delta(body, {"w": (1024,)})["w"]
    without = decode_delta(encode_delta(steady, "int8")[0], {"w": (1024,)})["w"] * 100

    assert np.abs(received - 100 * steady["w"].astype(np.float64)).max() < 0.011
    assert np.abs(without - 100 * steady["w"]).max() > 0.09


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(
        np.float32, st.integers(0, 2100), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    update_format=st.sampled_from(FORMATS),
)
def test_every_finite_update_survives_and_decodes_to_finite_values(values: Any, update_format: UpdateFormat) -> None:
    body, left = encode_delta({"w": values}, update_format)

    found = decode_delta(body, {"w": values.shape})["w"]

    assert np.isfinite(found).all()
    if left is not None:
        np.testing.assert_array_equal(left["w"], values - found)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("update_format", FORMATS)
def test_what_is_not_finite_reaches_the_reader_as_it_is_and_is_refused(
    update_format: UpdateFormat, value: float
) -> None:
    weights = delta()
    weights["layer_00.weight"][299, 6] = value

    body, left = encode_delta(weights, update_format)

    with pytest.raises(BadDocument, match=r"layer_00\.weight has NaN or Inf"):
        decode_delta(body, SHAPES)
    assert left is None or all(np.isfinite(tensor).all() for tensor in left.values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_what_is_not_finite_is_not_decoded(kind: type[np.floating[Any]], value: float) -> None:
    tensors = {name: tensor.astype(kind) for name, tensor in delta().items()}
    tensors["layer_00.weight"][17, 3] = value

    with pytest.raises(BadDocument, match=r"layer_00\.weight has NaN or Inf"):
        decode_delta(encode_tensors(tensors, {}), SHAPES)


def wrong(change: str) -> dict[str, Any]:
    tensors: dict[str, Any] = dict(pack(delta(), "int8" if change.startswith("scale") or change == "-128" else "fp16"))
    match change:
        case "missing":
            del tensors["layer_00.bias"]
        case "surplus":
            tensors["extra"] = np.zeros(1, np.float32)
        case "shape":
            tensors["layer_00.weight"] = tensors["layer_00.weight"].T
        case "type":
            tensors["layer_00.bias"] = np.zeros(5, np.float64)
        case "half scale zero":
            tensors["layer_00.bias.scale"] = np.zeros(1, np.float32)
        case "half scale nan":
            tensors["layer_00.bias.scale"] = np.full(1, np.nan, np.float32)
        case "half scale that overflows":
            tensors["layer_00.bias.scale"] = np.full(1, 2.0**111, np.float32)
        case "half scales":
            tensors["layer_00.bias.scale"] = np.ones(2, np.float32)
        case "a scale beside fp32":
            tensors["layer_00.bias"] = tensors["layer_00.bias"].astype(np.float32)
        case "scale missing":
            del tensors["layer_00.weight.scale"]
        case "scale too short":
            tensors["layer_00.weight.scale"] = tensors["layer_00.weight.scale"][:-1]
        case "scale of another type":
            tensors["layer_00.weight.scale"] = tensors["layer_00.weight.scale"].astype(np.float64)
        case "scale negative":
            tensors["layer_00.weight.scale"] = -tensors["layer_00.weight.scale"]
        case "scale nan":
            tensors["layer_00.weight.scale"] = np.full_like(tensors["layer_00.weight.scale"], np.nan)
        case "scale that overflows":
            tensors["layer_00.weight.scale"] = np.full_like(tensors["layer_00.weight.scale"], 3e38)
        case "-128":
            tensors["layer_00.weight"] = np.full((300, 7), -128, np.int8)
    return tensors


@pytest.mark.parametrize(
    "change",
    [
        "missing",
        "surplus",
        "shape",
        "type",
        "half scale zero",
        "half scale nan",
        "half scale that overflows",
        "half scales",
        "a scale beside fp32",
        "scale missing",
        "scale too short",
        "scale of another type",
        "scale negative",
        "scale nan",
        "scale that overflows",
        "-128",
    ],
)
def test_a_body_that_is_not_exactly_an_update_is_refused(change: str) -> None:
    with pytest.raises(BadDocument):
        decode_delta(encode_tensors(wrong(change), {}), SHAPES)


def test_a_longer_body_is_refused_before_it_is_read() -> None:
    huge = bytes(largest_body(SHAPES) + 1)

    with pytest.raises(TooLarge):
        decode_delta(huge, SHAPES)


def test_a_name_that_would_look_like_a_scale_is_refused() -> None:
    with pytest.raises(InvalidInput, match="must not end in"):
        pack({"w.scale": np.ones(3, np.float32)}, "fp32")


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_mapped_body_is_not_copied(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "update"
    path.write_bytes(encode_tensors({name: tensor.astype(kind) for name, tensor in delta().items()}, {}))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        found = mapped_delta(view, SHAPES)

        weight = found["layer_00.weight"]
        assert weight.dtype == kind
        assert not weight.flags.owndata
        assert not weight.flags.writeable
        np.testing.assert_array_equal(weight, delta()["layer_00.weight"].astype(kind))
        del weight, found
        view.release()


@pytest.mark.parametrize(("begin", "end"), [(0, 5000), (0, 1), (1023, 1025), (1024, 2048), (2047, 5000), (4999, 5000)])
def test_a_slice_of_eight_bits_is_the_slice_of_the_whole(begin: int, end: int) -> None:
    weights = {"w": np.random.default_rng(0).normal(size=(50, 100)).astype(np.float32)}
    body = encode_weights(weights, "int8")

    flat = mapped_delta(memoryview(body), {"w": (50, 100)})["w"].reshape(-1)

    assert (len(flat), flat.dtype) == (5000, np.float32)
    np.testing.assert_array_equal(flat[begin:end], decode_delta(body, {"w": (50, 100)})["w"].reshape(-1)[begin:end])


@pytest.mark.parametrize("size", [65 * 1024, 65 * 1024 + 100])
def test_eight_bits_of_a_large_tensor_are_those_of_each_block_alone(size: int) -> None:
    weights = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    weights *= np.repeat(np.float32(10) ** np.arange(-33, 33, dtype=np.float32), 1024)[:size]

    whole = decode_weights(encode_weights({"w": weights}, "int8"), {"w": (size,)})["w"]

    for begin in range(0, size, 1024):
        block = weights[begin : begin + 1024]
        alone = decode_weights(encode_weights({"w": block}, "int8"), {"w": block.shape})["w"]
        np.testing.assert_array_equal(whole[begin : begin + 1024], alone)


def test_a_part_of_sixteen_bits_is_decoded_by_whoever_reads_it() -> None:
    weights = {"w": np.random.default_rng(0).normal(scale=1e-7, size=5000).astype(np.float32)}
    body = encode_weights(weights, "fp16")
    whole = decode_delta(body, {"w": (5000,)})["w"]

    part = take_block(Update(0, 1.0, mapped_delta(memoryview(body), {"w": (5000,)})), Block("w", 100, 1900))

    assert not isinstance(part, np.ndarray)
    np.testing.assert_array_equal(part[10:20], whole[110:120])
    np.testing.assert_array_equal(np.asarray(part), whole[100:1900])


def test_a_large_model_is_sent_in_half_its_bytes_unless_updates_come_whole() -> None:
    weights = {"w": np.linspace(-0.3, 0.5, 1 << 18, dtype=np.float32)}

    halved, whole = sent_weights(weights, "fp16"), sent_weights(weights, "fp32")

    assert len(halved) < 0.51 * len(whole)
    assert sent_weights(weights, "int8") == halved
    assert whole == encode_weights(weights)
    read = as_sent(weights, "fp16")["w"]
    assert 0 < np.abs(read - weights["w"]).max() < 0.5 * 2.0**-11
    assert np.array_equal(as_sent(weights, "fp32")["w"], weights["w"])


def test_a_small_model_is_sent_as_it_is() -> None:
    weights = {"w": np.linspace(-0.3, 0.5, (1 << 18) - 1, dtype=np.float32)}

    assert sent_weights(weights, "fp16") == encode_weights(weights)


def halves_of(values: NDArray[np.float32]) -> tuple[NDArray[np.uint16], float]:
    tensors, _ = decode_tensors(encode_weights({"w": values}, "fp16"), max_bytes=1 << 24)
    return tensors["w"].view(np.uint16), float(tensors["w.scale"][0])


@pytest.mark.parametrize("length", [1e-37, 1e-5, 1.0, 2.0**28, 2.0**29, 1e30])
def test_values_are_rounded_to_halves_as_numpy_rounds_them(length: float) -> None:
    values = (np.random.default_rng(7).standard_normal(70_000) * length).astype(np.float32)
    values[::5], values[1::9] = 0, -values[1::9] * np.float32(1e-7)
    ties = np.float32(length) * np.arange(2049, 4096, dtype=np.float32) * np.float32(2.0**-11)
    values = np.concatenate([values, ties, -ties])

    found, scale = halves_of(values)

    assert np.array_equal(found, (values / np.float32(scale)).astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("scale", [2.0**-100, 0.1, 1.0, 2.0**15, 2.0**16, 2.0**110])
def test_every_half_is_read_as_numpy_reads_it(scale: float) -> None:
    halves = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    body = encode_tensors({"w": halves, "w.scale": np.array([scale], dtype=np.float32)}, {})

    found = decode_weights(body, {"w": halves.shape})["w"]

    assert np.array_equal(found.view(np.uint32), (halves.astype(np.float32) * np.float32(scale)).view(np.uint32))


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01])
def test_a_half_that_is_no_number_stays_none_where_rules_read_it(bits: int) -> None:
    halves = np.zeros(1000, dtype=np.float16)
    halves.view(np.uint16)[500] = bits
    body = encode_tensors({"w": halves, "w.scale": np.ones(1, dtype=np.float32)}, {})

    found = mapped_delta(body, {"w": (1000,)})["w"].reshape(-1)[400:600]

    assert not np.isfinite(found[100])
    assert np.isfinite(np.delete(found, 100)).all()
