"""Rows to tensors: every kind of frame gives the same tensors and the same faults."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tristage.client.codec import ListTruncated, decode, encode
from tristage.columns import NULL_STRING, Column, Signature
from tristage.errors import InferenceFailed, InputError

SIGNATURE = Signature(
    "tiny",
    64,
    (
        Column("amount", "float32"),
        Column("age", "int32", nullable=True),
        Column("count", "int64"),
        Column("flag", "bool"),
        Column("word", "string"),
        Column("nick", "string", nullable=True),
        Column("tokens", "int64", length=3, pad=-1),
        Column("tags", "string", length=2, pad=""),
    ),
    (Column("sum", "float32"), Column("second", "float64")),
)
GOOD = {
    "amount": 1.5,
    "age": 30,
    "count": 7,
    "flag": True,
    "word": "hello",
    "nick": "ümläut",
    "tokens": [1, 2],
    "tags": ["a"],
}
KINDS = ("dicts", "pandas", "arrow", "batch")


def frame(kind, rows):
    if kind == "dicts":
        return rows
    if kind == "pandas":
        return pd.DataFrame(rows, index=[f"r{n}" for n in range(len(rows))])
    table = pa.Table.from_pylist(rows)
    return table if kind == "arrow" else table.combine_chunks().to_batches()[0]


def one(column: Column) -> Signature:
    return Signature("one", 64, (column,), ())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_tensors(kind):
    other = {**GOOD, "amount": float("nan"), "age": None, "nick": None, "tokens": [], "tags": ["x", "y"], "flag": False}
    got = encode(frame(kind, [GOOD, other]), SIGNATURE)
    assert list(got) == [column.name for column in SIGNATURE.inputs]
    for column in SIGNATURE.inputs:
        assert got[column.name].dtype == column.numpy_dtype, column.name
        assert got[column.name].shape == (2, column.width), column.name
    np.testing.assert_array_equal(got["amount"], np.array([[1.5], [np.nan]], np.float32))
    np.testing.assert_array_equal(got["age"], [[30.0], [np.nan]])
    assert got["count"].tolist() == [[7], [7]]
    assert got["flag"].tolist() == [[True], [False]]
    assert got["word"].tolist() == [["hello"], ["hello"]]
    assert got["nick"].tolist() == [["ümläut"], [NULL_STRING]]
    assert got["tokens"].tolist() == [[1, 2, -1], [-1, -1, -1]]
    assert got["tags"].tolist() == [["a", ""], ["x", "y"]]
    assert {type(cell) for name in ("word", "nick", "tags") for cell in got[name].ravel()} == {str}


FAULTS = [
    ("amount", "1.5", "expected a number (float32), got the string '1.5'"),
    ("amount", None, "a null, and the column is not nullable"),
    ("amount", True, "got the boolean True"),
    ("amount", 1e39, "too large for a float32"),
    ("amount", [1.0], "expected one float32, got the list [1.0]; send one value a row"),
    ("age", 2.5, "expected a whole number (int32), got 2.5; round it first"),
    ("age", 2**31, "out of range; a int32 is between -2147483648 and 2147483647"),
    ("age", "thirty", "got the string 'thirty'"),
    ("age", float("inf"), "expected a whole number"),
    ("count", None, "a null, and the column is not nullable"),
    ("count", 7.25, "round it first"),
    ("count", 1e19, "out of range"),
    ("count", True, "got the boolean True"),
    ("flag", 2, "out of range; a bool is between 0 and 1"),
    ("flag", "yes", "expected true or false (bool), got the string 'yes'"),
    ("word", 5, "expected a string, got 5; convert it with str() first"),
    ("word", True, "expected a string, got the boolean True"),
    ("word", None, "not nullable"),
    ("word", b"\xff\xfe", "is not UTF-8"),
    ("word", NULL_STRING, "stands for a null on the wire"),
    ("nick", NULL_STRING, "stands for a null on the wire"),
    ("word", ["a"], "send one value a row"),
    ("tokens", 5, "expected a list, got 5; put it in a list"),
    ("tokens", "5", "expected a list, got the string '5'"),
    ("tokens", None, "a null, and the column is not nullable; send an empty list"),
    ("tokens", [1, None], "a null inside a list"),
    ("tokens", [[1], [2]], "a list inside a list"),
    ("tokens", ["a"], "got the string 'a'"),
    ("tokens", [1.5], "round it first"),
    ("tags", ["a", None], "a null inside a list"),
    ("tags", [1], "expected a string, got 1"),
    ("tags", [NULL_STRING], "stands for a null"),
]


def _faulty(name, value, mixed):
    """Rows of one column, all at fault or, mixed, from the third on."""
    good, bad = {name: GOOD[name]}, {name: value}
    return [good, good, bad, bad] if mixed else [bad]


def _can_be_told(kind, name, value, mixed):
    """Whether rows of this kind can hold the fault, and hold it as it was."""
    if kind in ("arrow", "batch"):
        try:
            frame(kind, _faulty(name, value, mixed))
        except (pa.ArrowException, TypeError):
            return False
    # pandas makes NaN of a None among floats, Arrow 1.0 of a True, before anybody sees it
    return not (mixed and name == "amount" and (kind, value) in (("pandas", None), ("arrow", True), ("batch", True)))


@pytest.mark.parametrize(
    ("kind", "mixed", "name", "value", "says"),
    [
        (kind, mixed, *fault)
        for kind in KINDS
        for mixed in (False, True)
        for fault in FAULTS
        if _can_be_told(kind, *fault[:2], mixed)
    ],
)
def test_a_fault_names_column_and_row(kind, mixed, name, value, says):
    rows = _faulty(name, value, mixed)
    column = next(column for column in SIGNATURE.inputs if column.name == name)
    with pytest.raises(InputError) as caught:
        encode(frame(kind, rows), one(column))
    error, row = caught.value, 2 if mixed else 0
    got = str(error)
    # Arrow makes one type of a column: ints among floats are floats, bools stay bools
    assert f'column "{name}", row {row}: ' in got
    assert (error.column, error.row) == (name, row)
    if kind == "dicts":
        assert says in got


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int8", -129),
        ("int8", 128),
        ("uint8", -1),
        ("uint64", -1),
        ("int64", 2.0**63),
        ("uint64", 2.0**64),
        ("bool", -1),
    ],
)
def test_just_out_of_range(kind, dtype, value):
    good = type(value)(1)
    with pytest.raises(InputError, match=r'column "c", row 1: .* is out of range') as caught:
        encode(frame(kind, [{"c": good}, {"c": value}]), one(Column("c", dtype)))
    assert caught.value.row == 1


def test_rows_count_from_first_row():
    with pytest.raises(InputError, match=r'"count", row 101: '):
        encode([{"count": 1}, {"count": "x"}], one(Column("count", "int64")), first_row=100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("column", "values", "wire"),
    [
        (Column("c", "int64"), [np.int32(5), 5.0, np.float32(5), 5], [5] * 4),
        (Column("c", "int8"), [-128, 127], [-128, 127]),
        (Column("c", "int64"), [2**63 - 1, -(2**63)], [2**63 - 1, -(2**63)]),
        (Column("c", "float64"), [1, 2.5], [1.0, 2.5]),
        (Column("c", "float32"), [float("inf"), 16777217], [np.inf, 16777216.0]),
        (Column("c", "bool"), [0, 1], [False, True]),
        (Column("c", "bool", nullable=True), [True, False], [1.0, 0.0]),
        (Column("c", "string"), ["", "naïve", "\x00"], ["", "naïve", "\x00"]),
        (Column("c", "string"), [b"bytes", b"\xc3\xa9"], ["bytes", "é"]),
    ],
)
def test_what_widens_safely_passes(kind, column, values, wire):
    got = encode(frame(kind, [{"c": value} for value in values]), one(column))["c"]
    assert got.dtype == column.numpy_dtype
    assert got.ravel().tolist() == wire


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["int16", "bool", "float64", "string"])
def test_nulls_travel_as_nan_or_the_null_string(kind, dtype):
    value = {"int16": 3, "bool": True, "float64": 2.5, "string": "s"}[dtype]
    got = encode(frame(kind, [{"c": value}, {"c": None}]), one(Column("c", dtype, nullable=True)))["c"].ravel()
    if dtype == "string":
        assert got.tolist() == ["s", NULL_STRING]
    else:
        assert got[0] == value
        assert np.isnan(got[1])
    every = encode(frame(kind, [{"c": None}] * 2), one(Column("c", dtype, nullable=True)))["c"].ravel()
    assert all(cell == NULL_STRING if dtype == "string" else np.isnan(cell) for cell in every)


def test_pandas_own_nulls_and_types():
    column = Column("c", "int64", nullable=True)
    for values in (pd.array([1, None], "Int64"), [1, np.nan], np.array([1, pd.NA], dtype=object)):
        got = encode(pd.DataFrame({"c": values}), one(column))["c"].ravel()
        np.testing.assert_array_equal(got, [1.0, np.nan])
    text = Column("c", "string", nullable=True)
    for values in (pd.array(["a", None], "string"), ["a", np.nan], pd.Categorical(["a", None])):
        assert encode(pd.DataFrame({"c": values}), one(text))["c"].ravel().tolist() == ["a", NULL_STRING]
    with pytest.raises(InputError, match="row 1: a null"):
        encode(pd.DataFrame({"c": pd.array([1.0, None], "Float64")}), one(Column("c", "float64")))
    with pytest.raises(InputError, match=r"row 0: expected a whole number .* got the Timestamp"):
        encode(pd.DataFrame({"c": pd.to_datetime(["2021-02-04"])}), one(Column("c", "int64")))


def test_pandas_lists_and_arrays_in_cells():
    column = Column("c", "int64", length=3, pad=0)
    want = [[1, 2, 0], [0, 0, 0]]
    for cells in ([[1, 2], []], [np.array([1, 2]), np.array([], dtype=np.int64)], [(1, 2), ()]):
        assert encode(pd.DataFrame({"c": cells}), one(column))["c"].tolist() == want
        assert encode([{"c": cell} for cell in cells], one(column))["c"].tolist() == want
    with pytest.raises(InputError, match=r"row 1: expected a flat list, got an array of shape \(2, 2\)"):
        encode([{"c": [1]}, {"c": np.ones((2, 2))}], one(column))
    with pytest.raises(InputError, match="row 0: a list inside a list"):
        encode(pd.DataFrame({"c": [[[1], [2]], [[3]]]}), one(column))


def test_arrow_types_of_every_width():
    words = pa.array(["a", None]).dictionary_encode()
    assert encode(pa.table({"c": words}), one(Column("c", "string", nullable=True)))["c"].ravel().tolist() == [
        "a",
        NULL_STRING,
    ]
    lists = Column("c", "float32", length=2, pad=0.0)
    for kind in (pa.list_(pa.float64()), pa.large_list(pa.int16()), pa.list_(pa.float32(), 2)):
        data = pa.array([[1, 2], [3, 4]], kind)
        assert encode(pa.table({"c": data}), one(lists))["c"].tolist() == [[1, 2], [3, 4]]
    whole = pa.table({"c": pa.array([2**64 - 1, 0], pa.uint64())})
    for rows in (whole, whole.to_pandas(), whole.to_pylist()):
        assert encode(rows, one(Column("c", "uint64")))["c"].tolist() == [[2**64 - 1], [0]]
        with pytest.raises(InputError, match="row 0: 18446744073709551615 is out of range"):
            encode(rows, one(Column("c", "int64")))
    chunked = pa.chunked_array([pa.array([[1.0]]), pa.array([], pa.list_(pa.float64())), pa.array([[2.0, 3.0]])])
    assert encode(pa.table({"c": chunked}), one(lists))["c"].tolist() == [[1, 0], [2, 3]]
    sliced = pa.table({"c": pa.array([[9.0, 9.0, 9.0], [1.0], [2.0, 3.0]])}).slice(1)
    assert encode(sliced, one(lists))["c"].tolist() == [[1, 0], [2, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_null_list_is_empty_where_nulls_may_be(kind):
    column = Column("c", "int64", length=2, pad=0, nullable=True)
    with pytest.warns(ListTruncated, match="the lists of 1 row hold"):
        got = encode(frame(kind, [{"c": [1, 2, 3]}, {"c": None}, {"c": [5]}]), one(column))["c"]
    assert got.tolist() == [[1, 2], [0, 0], [5, 0]]
    assert got.dtype == np.float64


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_list_is_cut_and_said_once_a_column(kind):
    rows = [{**GOOD, "tokens": list(range(n))} for n in (3, 4, 9)] + [{**GOOD, "tags": ["a", "b", "c"]}]
    with pytest.warns(ListTruncated) as raised:
        got = encode(frame(kind, rows), SIGNATURE)
    assert got["tokens"].tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [1, 2, -1]]
    said = {w.message.column: (w.message.rows, w.message.limit) for w in raised}
    assert said == {"tokens": (2, 3), "tags": (1, 2)}
    assert len(raised) == 2
    assert 'column "tokens": the lists of 2 rows hold more than 3 elements' in str(raised[0].message)


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_that_fits_is_not_spoken_of(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(frame(kind, [GOOD]), SIGNATURE)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_columns_are_all_named_with_likely_ones(kind):
    row = {**GOOD, "amuont": 1.0}
    del row["amount"], row["flag"]
    with pytest.raises(InputError, match=r'columns "amount", "flag" are missing.*did you mean "amuont" for "amount"\?'):
        encode(frame(kind, [row]), SIGNATURE)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_columns_are_named_or_ignored(kind):
    rows = [{**GOOD, "extra": 1, "zzz": "q"}]
    with pytest.raises(
        InputError, match=r'columns "extra", "zzz" are unknown to the stack.*--unknown ignore'
    ) as caught:
        encode(frame(kind, rows), SIGNATURE)
    assert caught.value.column == "extra"
    assert list(encode(frame(kind, rows), SIGNATURE, unknown="ignore")) == list(GOOD)
    with pytest.raises(InputError, match="unknown must be"):
        encode(rows, SIGNATURE, unknown="drop")


def test_one_dict_row_that_differs_is_named():
    short = {name: value for name, value in GOOD.items() if name != "word"}
    with pytest.raises(InputError, match=r'column "word" is missing in row 1') as caught:
        encode([GOOD, short], SIGNATURE)
    assert caught.value.row == 1
    with pytest.raises(InputError, match=r'column "more" is unknown to the stack in row 2'):
        encode([GOOD, GOOD, {**GOOD, "more": 1}], SIGNATURE)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no rows"),
        (pd.DataFrame([GOOD]).iloc[:0], "no rows"),
        (pa.Table.from_pylist([GOOD]).slice(0, 0), "no rows"),
        (GOOD, r"one dict; for one row, send \[row\]"),
        ("rows", "not str"),
        (iter([GOOD]), r"list\(rows\)"),
        (None, "not NoneType"),
        ([[1, 2]], "row 0 is a list and must be a dict"),
        ([GOOD, None], "row 1 is a NoneType"),
        (pd.concat([pd.DataFrame([GOOD]), pd.DataFrame({"word": ["b"]})], axis=1), '"word" is there more than once'),
    ],
)
def test_what_are_not_rows_is_said(rows, says):
    with pytest.raises(InputError, match=says):
        encode(rows, SIGNATURE)


def test_scalars_that_hold_arrays_are_a_wrong_shape():
    with pytest.raises(InputError, match="row 1: expected one string, got the ndarray"):
        encode([{"c": "a"}, {"c": np.array(["a", "b"])}], one(Column("c", "string")))
    with pytest.raises(InputError, match="row 0: expected one int64, got the dict"):
        encode([{"c": {}}], one(Column("c", "int64")))


def test_lone_surrogates_are_not_unicode():
    for rows in ([{"c": "ok"}, {"c": "\ud800"}], pd.DataFrame({"c": ["ok", "\ud800"]}, dtype=object)):
        with pytest.raises(InputError, match="row 1: .* is not valid Unicode"):
            encode(rows, one(Column("c", "string")))


OUTPUTS = {"sum": np.array([[1.5], [2.5]], np.float32), "second": np.array([[1.0], [np.nan]])}


def test_answers_come_back_in_the_shape_of_the_rows():
    answer = decode(OUTPUTS, SIGNATURE, [GOOD, GOOD])
    assert [list(row) for row in answer] == [["sum", "second"]] * 2
    assert answer[0] == {"sum": 1.5, "second": 1.0}
    assert {type(value) for row in answer for value in row.values()} == {float}
    framed = decode(OUTPUTS, SIGNATURE, frame("pandas", [GOOD, GOOD]))
    assert framed.index.tolist() == ["r0", "r1"]
    assert framed["sum"].tolist() == [1.5, 2.5]
    assert framed["sum"].dtype == np.float32
    for kind, type_ in (("arrow", pa.Table), ("batch", pa.RecordBatch)):
        got = decode(OUTPUTS, SIGNATURE, frame(kind, [GOOD, GOOD]))
        assert isinstance(got, type_)
        assert got.schema.names == ["sum", "second"]
        assert got.column(0).to_pylist() == [1.5, 2.5]


def test_an_answer_of_another_length_is_refused():
    with pytest.raises(InferenceFailed, match=r'shape \(2, 1\) for the output "sum" of 3 rows'):
        decode(OUTPUTS, SIGNATURE, [GOOD] * 3)
    with pytest.raises(InferenceFailed, match='nothing for the output "second"'):
        decode({"sum": OUTPUTS["sum"]}, SIGNATURE, [GOOD] * 2)


LISTS = Signature("lists", 64, SIGNATURE.inputs, (Column("items", "int64", 2), Column("one", "bool", 1)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2])
def test_lists_come_back_as_lists(kind, rows):
    items = np.array([[2**60, 2**60 + 1], [-1, 0]])[:rows]
    got = decode({"items": items, "one": np.ones((rows, 1), bool)}, LISTS, frame(kind, [GOOD] * rows))
    if kind == "dicts":
        assert got == [{"items": row, "one": [True]} for row in items.tolist()]
    elif kind == "pandas":
        assert [row.tolist() for row in got["items"]] == items.tolist()
        assert got["items"].iloc[0].dtype == np.int64
    else:
        assert got.column("items").to_pylist() == items.tolist()
        assert got.schema.types == [pa.list_(pa.int64()), pa.list_(pa.bool_())]


def test_lists_of_another_length_are_refused():
    with pytest.raises(InferenceFailed, match=r'shape \(2, 3\) for the output "items" of 2 rows'):
        decode({"items": np.zeros((2, 3), np.int64)}, LISTS, [GOOD] * 2)


def test_other_frames_come_as_an_arrow_stream():
    class Frame:
        def __init__(self, table):
            self.table = table

        def __arrow_c_stream__(self, requested_schema=None):
            return self.table.__arrow_c_stream__(requested_schema)

    rows = Frame(pa.Table.from_pylist([GOOD, GOOD]))
    np.testing.assert_equal(encode(rows, SIGNATURE), encode([GOOD, GOOD], SIGNATURE))
    assert isinstance(decode(OUTPUTS, SIGNATURE, rows), pa.Table)


def test_polars_frames_come_back_as_polars():
    pl = pytest.importorskip("polars")
    rows = pl.DataFrame([GOOD, {**GOOD, "nick": None, "age": None}])
    got = encode(rows, SIGNATURE)
    assert got["nick"].ravel().tolist() == ["ümläut", NULL_STRING]
    assert got["tokens"].tolist() == [[1, 2, -1]] * 2
    answer = decode(OUTPUTS, SIGNATURE, rows)
    assert isinstance(answer, pl.DataFrame)
    assert answer["sum"].to_list() == [1.5, 2.5]


def test_dicts_do_not_bring_in_pandas():
    code = (
        "import sys; from tristage.client import encode; from tristage.columns import *\n"
        "s = Signature('s', 8, (Column('a', 'int64', nullable=True), Column('b', 'string', length=2, pad='')), ())\n"
        "encode([{'a': 1, 'b': ['x']}, {'a': None, 'b': []}], s)\n"
        "assert 'pandas' not in sys.modules and 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint64", "float32", "float64"])
@pytest.mark.parametrize("others", [[], [1.0]])
def test_an_int_beyond_all_floats_is_a_fault(dtype, others):
    with pytest.raises(InputError, match='column "x", row') as caught:
        encode([{"x": value} for value in [*others, 10**400]], one(Column("x", dtype)))
    assert caught.value.row == len(others)
