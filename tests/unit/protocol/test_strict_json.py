from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_protocol import strict_json
from parity_protocol.errors import BadDocument, InvalidInput, TooLarge

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/strict_json/documents.json").read_text(encoding="utf-8"))

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**39), 10**39)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=20,
)


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_what_two_readers_could_read_differently_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(BadDocument) as refused:
        strict_json.loads(bytes.fromhex(vector["hex"]))

    assert refused.value.field == vector["field"]


@pytest.mark.parametrize("vector", VECTORS["accepted"], ids=lambda vector: vector["name"])
def test_accepted_documents_have_one_canonical_form(vector: dict[str, str]) -> None:
    value = strict_json.loads(bytes.fromhex(vector["hex"]))

    assert strict_json.dumps(value).decode() == vector["canonical"]
    assert strict_json.loads(vector["canonical"].encode()) == value


@given(values)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert strict_json.loads(strict_json.dumps(value)) == value


@given(st.binary(max_size=60) | st.text('[]{}":,\\u0dD8cC19eE.-+truefalsn \n', max_size=60).map(str.encode))
def test_any_bytes_are_read_as_the_standard_reads_them_or_refused(data: bytes) -> None:
    try:
        value = strict_json.loads(data)
    except InvalidInput:
        return

    assert value == json.loads(data)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":', b'["]",'])
def test_nesting_of_ten_thousand_is_refused_and_not_recursed_into(opening: bytes) -> None:
    with pytest.raises(BadDocument, match="nested deeper than 32"):
        strict_json.loads(opening * 10_000)


def test_depth_counts_only_what_is_open_at_once() -> None:
    wide = b"[" + b",".join([b"[[]]"] * 1_000) + b"]"

    assert len(strict_json.loads(wide, max_depth=3)) == 1_000  # type: ignore[arg-type]
    with pytest.raises(BadDocument, match="nested deeper than 2"):
        strict_json.loads(wide, max_depth=2)


def test_unterminated_string_of_escaped_quotes_takes_linear_time() -> None:
    # A search that starts again at every quote would take minutes here, and the test's time limit would end it.
    data = b"[" * 40 + b'"' + b'\\"' * 130_000

    with pytest.raises(BadDocument):
        strict_json.loads(data, max_depth=64)


def test_size_is_checked_before_anything_else() -> None:
    assert strict_json.loads(b'"' + b"a" * 8 + b'"', max_bytes=10) == "a" * 8
    with pytest.raises(TooLarge, match="11 bytes, 10 are allowed"):
        strict_json.loads(b"\xff" * 11, max_bytes=10)


def test_several_flaws_name_the_first_in_document_order() -> None:
    with pytest.raises(BadDocument) as refused:
        strict_json.loads(b'{"a":{"b":1},"c":[NaN],"d":{"x":1,"x":2}}')

    assert refused.value.field == "/c/0"


def test_pointer_is_bounded_ascii_and_escaped() -> None:
    name = "é\n" + "x" * 10_000
    data = json.dumps({"a~b/c": {name: {name + "1": {name + "2": {name + "3": math.nan}}}}}).encode()

    with pytest.raises(BadDocument) as refused:
        strict_json.loads(data)

    assert refused.value.field.startswith("/a~0b~1c/\\xe9\\nxxx")
    assert len(refused.value.field) <= 200
    assert refused.value.message.isascii()


def test_flaw_before_a_syntax_error_is_still_refused() -> None:
    with pytest.raises(BadDocument, match="NaN"):
        strict_json.loads(b'{"a":NaN,"b":')


@pytest.mark.parametrize(
    "value",
    [math.nan, [math.inf], {"a": "\ud800"}, {"a": object()}, {1: 2, "b": 3}, b"bytes"],
    ids=["nan", "infinity", "lone surrogate", "not JSON", "key not text", "bytes"],
)
def test_what_could_not_be_read_back_is_not_written(value: object) -> None:
    with pytest.raises(BadDocument):
        strict_json.dumps(value)


def test_values_that_contain_themselves_are_not_written() -> None:
    value: list[object] = []
    value.append(value)

    with pytest.raises(BadDocument):
        strict_json.dumps(value)


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b"[]," * 200_000 + b"[]]",
        b'["' + b'","' * 200_000 + b'"]',
        b"{" + b",".join(b'"%d":1' % number for number in range(200_000)) + b"}",
        b"[" + b'"' * 1_000_000 + b"," * 200_000,
    ],
    ids=["lists", "strings", "members", "quotes"],
)
def test_a_great_many_values_are_refused_before_they_are_built(data: bytes) -> None:
    with pytest.raises(TooLarge, match="100000 values"):
        strict_json.loads(data, max_bytes=16 << 20)


def test_marks_inside_strings_are_no_values() -> None:
    text = "[{,}]" * 50_000

    assert strict_json.loads(json.dumps([text]).encode(), max_bytes=1 << 20, max_values=2) == [text]
