from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_fl.data import label_classes, load_dataset, parse_csv, parse_json, targets
from parity_fl.limits import DataLimits
from parity_protocol.errors import ExecutionFailed, FailureReason

SMALL = DataLimits(max_bytes=10_000, max_rows=20, max_columns=5, max_cells=40, max_json_cells=40, max_line_chars=200)


def refusal(parse, data, **options):
    with pytest.raises(ExecutionFailed) as caught:
        parse(data, **options)
    assert caught.value.reason is FailureReason.DATA_INVALID
    return caught.value.message


def test_csv_without_a_header_keeps_its_first_row():
    data = parse_csv(b"1,2,0\n3,4,1\n")

    assert data.features.tolist() == [[1, 2], [3, 4]]
    assert data.labels.tolist() == [0, 1]
    assert data.feature_names is None


def test_csv_with_string_labels_and_no_header_keeps_its_first_row():
    assert parse_csv(b"5.1,3.5,setosa\n4.9,3.0,setosa\n").features.shape == (2, 2)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_csv_header_is_recognised_because_no_feature_cell_is_a_number(start, newline):
    data = parse_csv(start + newline.join([b'mean_radius,"area, worst",y', b" 1e-3 ,-2,a", b"", b"3,4.5,b"]) + newline)

    assert data.feature_names == ("mean_radius", "area, worst")
    assert data.features.tolist() == [[0.001, -2], [3, 4.5]]
    assert data.labels.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "failed to read CSV header"),
        (b"a,b,y\n", "no data loaded"),
        (b"1\n2\n", "features have zero dimensions"),
        (b"1,2,0\n1,0\n", "inconsistent feature dimensions at sample 1: expected 2, got 1 (row 2)"),
        (b"a,b,y\n1,2,0\n1,2,3,0\n", "inconsistent feature dimensions at sample 1: expected 2, got 3 (row 3)"),
        (b"1,2,0\n1,x,0\n", "failed to parse feature value: 'x' (row 2, column 2)"),
        (b"1,x,0\n", "failed to parse feature value: 'x' (row 1, column 2)"),
        (b"1,2,0\n1,,0\n", "failed to parse feature value: '' (row 2, column 2)"),
        (b"1,2,0\n1_0,2,0\n", "failed to parse feature value: '1_0' (row 2, column 1)"),
        ("1,2,0\n１,2,0\n".encode(), "failed to parse feature value: '\\uff11' (row 2, column 1)"),
        (b"1,2,0\n0x10,2,0\n", "failed to parse feature value"),
        (b"1,2,0\nnan,2,0\n", "input features contain NaN or Inf values at sample 1, feature 0 (row 2, column 1)"),
        (b"1,2,0\n1,-inf,0\n", "input features contain NaN or Inf values at sample 1, feature 1 (row 2, column 2)"),
        (b"1,2,0\n1,1e999,0\n", "input features contain NaN or Inf values at sample 1, feature 1"),
        (b"1,2,0\n1,2,nan\n", "input labels contain NaN or Inf values at sample 1"),
        (b"1,2,a\n1,2,\n", "invalid label at sample 1: ''"),
        (b"1,2,a\n1,2," + b"x" * 300 + b"\n", "invalid label at sample 1"),
        (b"1,2,a\n1,2,b\x07\n", "unprintable"),
        (b"1,2,0\n1,2\x00,0\n", "failed to read CSV record: NUL character (row 2)"),
        (b"1,2,0\n\xff,2,0\n", "failed to read CSV record: not UTF-8"),
        (b'1,2,0\n"1,2,0\n1,2,0\n', "failed to read CSV record: a quoted field does not end on its line (row 2)"),
        (b'1,2,0\n"1"x,2,0\n', "failed to read CSV record"),
        (b"a\x07,b,y\n1,2,0\n", "failed to read CSV header: the name of feature 1"),
    ],
)
def test_bad_csv_is_refused_with_its_place(data, words):
    assert words in refusal(parse_csv, data)


def test_a_bad_cell_far_behind_the_first_chunk_is_named_by_its_own_row():
    rows = ["1,2,0"] * 140_000
    rows[135_321] = "1,inf,0"

    message = refusal(parse_csv, "\n".join(rows).encode())

    assert message == "input features contain NaN or Inf values at sample 135321, feature 1 (row 135322, column 2)"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"1,0\n" * 3000, "bytes long"),
        (b"1,0\n" * 21, "too many rows"),
        (b"1,1,1,1,0\n" * 11, "too many cells"),
        (b"1,1,1,1,1,1,0\n", "too many columns"),
        (b"1," * 150 + b"0\n", "over 200 characters"),
    ],
)
def test_csv_over_a_cap_is_refused(data, words):
    assert words in refusal(parse_csv, data, limits=SMALL)


def test_json_reads_numbers_and_string_labels():
    document = {"features": [[1, 2.5], [-3e2, 0]], "labels": ["b", "a"], "feature_names": ["x", "y"]}

    data = parse_json(json.dumps(document).encode())

    assert data.features.tolist() == [[1, 2.5], [-300, 0]]
    assert data.labels.tolist() == ["b", "a"]
    assert data.feature_names == ("x", "y")


def test_csv_and_json_of_one_table_are_equal():
    from_csv = parse_csv(b"1,2.5,3\n4,5,6\n")
    from_json = parse_json(b'{"features": [[1, 2.5], [4, 5.0]], "labels": [3, 6]}')

    np.testing.assert_array_equal(from_csv.features, from_json.features)
    np.testing.assert_array_equal(from_csv.labels, from_json.labels)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "failed to parse JSON data"),
        (b"{", "failed to parse JSON data"),
        (b"[]", "failed to parse JSON data: expected an object"),
        (b"{}", "failed to parse JSON data: expected an object with features and labels"),
        (b'{"features": [[1]]}', "features and labels must both be lists"),
        (b'{"features": [], "labels": []}', "no data loaded"),
        (b'{"features": [[1], [2]], "labels": [1]}', "mismatched features and labels length"),
        (b'{"features": [[]], "labels": [1]}', "features have zero dimensions"),
        (b'{"features": [1], "labels": [1]}', "features have zero dimensions"),
        (b'{"features": [[1], 2], "labels": [1, 2]}', "sample 1 is not a list"),
        (
            b'{"features": [[1, 2], [1]], "labels": [1, 2]}',
            "inconsistent feature dimensions at sample 1: expected 2, got 1",
        ),
        (b'{"features": [[1], ["2"]], "labels": [1, 2]}', "failed to parse feature value: not a number at sample 1"),
        (b'{"features": [[1], [true]], "labels": [1, 2]}', "failed to parse feature value: not a number at sample 1"),
        (b'{"features": [[1], [null]], "labels": [1, 2]}', "failed to parse feature value: not a number at sample 1"),
        (b'{"features": [[1], [[2]]], "labels": [1, 2]}', "failed to parse feature value: not a number at sample 1"),
        (b'{"features": [[NaN]], "labels": [1]}', "NaN"),
        (b'{"features": [[1e999]], "labels": [1]}', "input features contain NaN or Inf values at sample 0, feature 0"),
        (b'{"features": [[' + b"9" * 5000 + b']], "labels": [1]}', "NaN or Inf values at sample 0"),
        (b'{"features": [[1]], "labels": [1e999]}', "input labels contain NaN or Inf values at sample 0"),
        (b'{"features": [[1]], "labels": [null]}', "invalid label at sample 0"),
        (b'{"features": [[1]], "labels": ["\\ud800"]}', "invalid label at sample 0"),
        (b'{"features": [[1]], "labels": [1], "labels": [2]}', "duplicate member labels"),
        (b'{"features": [[1]], "labels": [1], "x": 1}', "unknown member 'x'"),
        (b'{"features": [[1]], "labels": [1], "feature_names": ["a", "b"]}', "feature_names must be 1 strings"),
        (b'{"features": [[1]], "labels": [1], "feature_names": [7]}', "the name of feature 1"),
        (b'{"features": ' + b"[" * 100_000 + b"]" * 100_000 + b', "labels": []}', "nested too deeply"),
        (b'{"features": [[1]], "labels": [1]}\xff', "not UTF-8"),
    ],
)
def test_bad_json_is_refused_with_its_place(data, words):
    assert words in refusal(parse_json, data)


def test_unknown_format_is_refused_by_name():
    with pytest.raises(ExecutionFailed, match="unsupported data format: parquet"):
        load_dataset(b"1,2\n", "parquet")


def test_format_name_is_read_in_any_case():
    assert load_dataset(b"1,2\n", "CSV").features.tolist() == [[1]]


def test_numeric_classes_sort_by_value_and_lose_their_decimal_point():
    classes = label_classes(parse_csv(b"0,10\n0,9\n0,2.5\n0,-1\n").labels)

    assert classes.names == ("-1", "2.5", "9", "10")
    assert classes.index.tolist() == [3, 2, 1, 0]


def test_text_classes_sort_by_code_point_whatever_the_order_of_appearance():
    first = label_classes(parse_csv(b"0,b\n0,a\n0,B\n").labels)
    second = label_classes(parse_csv(b"0,B\n0,b\n0,a\n").labels)

    assert first.names == second.names == ("B", "a", "b")


def test_mixed_labels_are_text():
    assert label_classes(parse_csv(b"0,1\n0,x\n").labels).names == ("1", "x")


def test_more_classes_than_allowed_are_refused():
    rows = "\n".join(f"0,{label}" for label in range(1001))

    with pytest.raises(ExecutionFailed, match="at most 1000 classes"):
        label_classes(parse_csv(rows.encode()).labels)


def test_text_is_no_regression_target():
    with pytest.raises(ExecutionFailed, match="invalid label at sample 1: 'x' is not a number"):
        targets(parse_csv(b"0,1\n0,x\n").labels)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_table_or_a_refusal(data):
    for parse in (parse_csv, parse_json):
        try:
            found = parse(data, limits=SMALL)
        except ExecutionFailed as refused:
            assert refused.reason is FailureReason.DATA_INVALID  # noqa: PT017 - either outcome is right
        else:
            assert np.isfinite(found.features).all()
            assert len(found.features) == len(found.labels) >= 1


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1, max_size=20
    )
)
def test_numbers_survive_both_formats_bit_for_bit(rows):
    text = "\n".join(",".join(map(repr, row)) for row in rows)
    document = {"features": [row[:-1] for row in rows], "labels": [row[-1] for row in rows]}

    for data in (parse_csv(text.encode()), parse_json(json.dumps(document).encode())):
        np.testing.assert_array_equal(data.features, np.array(rows)[:, :-1])
        np.testing.assert_array_equal(data.labels, np.array(rows)[:, -1])
