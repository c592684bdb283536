"""Files of rows, golden rows' arithmetic, and what the package shows."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tristage.client
from tristage.client._files import count_rows, read_parts, write_rows
from tristage.client.golden import Verification, largest_difference
from tristage.columns import Column
from tristage.errors import InputError, ParityError, TristageError

COLUMNS = (Column("p", "float32"), Column("q", "float64"))


def test_exported_names():
    assert tristage.client.__all__ == [
        "AsyncClient",
        "AsyncTransport",
        "Client",
        "ListTruncated",
        "Transport",
        "Verification",
        "connect",
        "connect_async",
        "decode",
        "encode",
        "verify",
    ]
    assert all(hasattr(tristage.client, name) for name in tristage.client.__all__)


@pytest.mark.parametrize("module", ["tristage.client", "tristage.client.cli"])
def test_importing_brings_in_nothing_heavy(module):
    heavy = ["pandas", "pyarrow", "torch", "tensorflow", "nvtabular", "xgboost", "onnxruntime", "tritonclient", "grpc"]
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_parquet_is_read_in_parts(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": list(range(10))}), path, row_group_size=3)
    parts = list(read_parts(str(path), 4))
    assert [value for part in parts for value in part.rows.column(0).to_pylist()] == list(range(10))
    assert [part.first_row for part in parts] == [0, *np.cumsum([part.rows.num_rows for part in parts])[:-1]]
    assert max(part.rows.num_rows for part in parts) <= 4
    assert count_rows(str(path)) == 10


def test_json_lines_know_their_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": NaN}\n  \n{"a": null}')
    first, second = read_parts(str(path), 2)
    assert (first.first_row, first.lines) == (0, [1, 3])
    assert (second.rows, second.first_row, second.lines) == ([{"a": None}], 2, [5])
    assert count_rows(str(path)) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        (b'{"a": 1}\n\n[1]\n', "line 3 is not a JSON object"),
        (b'{"a": "\xff"}\n', "line 1 is not JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        list(read_parts(str(path), 100))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"rows.txt cannot be read: rows are .parquet or .jsonl"):
        list(read_parts("rows.txt", 1))
    for name in ("none.parquet", "none.jsonl"):
        with pytest.raises(InputError, match=f"{name} cannot be read .*No such file"):
            list(read_parts(str(tmp_path / name), 1))
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 and then not")
    for read in (count_rows, lambda name: list(read_parts(name, 1))):
        with pytest.raises(InputError, match=r"bad.parquet cannot be read as Parquet"):
            read(str(bad))


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
@pytest.mark.parametrize("kind", ["dicts", "batch"])
def test_answers_are_written(tmp_path, name, kind):
    path = tmp_path / name
    rows = [{"p": 0.5, "q": 0.25}, {"p": 1.0, "q": math.nan}]
    batch = pa.RecordBatch.from_pydict({"p": pa.array([0.5, 1.0], pa.float32()), "q": [0.25, math.nan]})
    with write_rows(str(path), COLUMNS) as write:
        for _ in range(2):
            write(rows if kind == "dicts" else batch)
        assert not path.exists()
    if name.endswith("parquet"):
        table = pq.read_table(path)
        assert table.schema.types == [pa.float32(), pa.float64()]
        assert table.column("p").to_pylist() == [0.5, 1.0] * 2
    else:
        read = [json.loads(line) for line in path.read_text().splitlines()]
        assert read == [{"p": 0.5, "q": 0.25}, {"p": 1.0, "q": None}] * 2
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["dicts", "batch"])
@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_lists_are_written(tmp_path, name, kind):
    path, columns = tmp_path / name, (Column("ids", "int64", 2), Column("p", "float32", 2))
    rows = [{"ids": [2**60, 1], "p": [0.5, math.nan]}, {"ids": [-1, 0], "p": [0.25, 1.0]}]
    batch = pa.RecordBatch.from_pydict(
        {
            "ids": pa.array([row["ids"] for row in rows]),
            "p": pa.array([row["p"] for row in rows], pa.list_(pa.float32())),
        }
    )
    with write_rows(str(path), columns) as write:
        write(rows if kind == "dicts" else batch)
    if name.endswith("parquet"):
        table = pq.read_table(path)
        assert table.schema.types == [pa.list_(pa.int64()), pa.list_(pa.float32())]
        assert table.column("ids").to_pylist() == [row["ids"] for row in rows]
    else:
        read = [json.loads(line) for line in path.read_text().splitlines()]
        assert read == [{"ids": [2**60, 1], "p": [0.5, None]}, rows[1]]


def test_whole_numbers_are_compared_as_such():
    ids = np.array([2**60, 5])
    assert largest_difference(ids, ids.copy()) == 0
    assert largest_difference(ids, ids + 1) >= 1


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_a_failure_leaves_what_was_there(tmp_path, name):
    path = tmp_path / name
    path.write_text("before")

    def fail():
        with write_rows(str(path), COLUMNS) as write:
            write([{"p": 0.5, "q": 0.25}])
            raise InputError("half way")

    with pytest.raises(InputError, match="half way"):
        fail()
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_places_that_cannot_be_written(tmp_path):
    for name in ("none/out.parquet", "none/out.jsonl"):
        with pytest.raises(TristageError, match="cannot be written"), write_rows(str(tmp_path / name), COLUMNS):
            pass
    with pytest.raises(InputError, match=r"cannot be written: rows are"), write_rows("out.csv", COLUMNS):
        pass
    with pytest.raises(TristageError, match="No space left"), write_rows(str(tmp_path / "out.jsonl"), COLUMNS):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("expected", "answered", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([math.nan], [math.nan], 0.0),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([1.0], [math.nan], math.inf),
        ([math.inf], [math.inf], 0.0),
        ([math.inf], [-math.inf], math.inf),
        ([], [], 0.0),
    ],
)
def test_differences(expected, answered, difference):
    assert largest_difference(np.array(expected, "f4"), np.array(answered, "f8")) == difference


def test_a_verification_knows_whether_it_passed():
    assert Verification("s", "u", 3, 1e-5, {"p": 1e-5, "q": 0.0}).passed
    found = Verification("s", "u", 3, 1e-5, {"p": 0.0, "q": 2e-5})
    assert not found.passed
    with pytest.raises(ParityError, match='"q" differs by 2e-05, more than 1e-05'):
        found.check()
    assert not Verification("s", "u", 3, 1e-5, {"p": math.inf}).passed
