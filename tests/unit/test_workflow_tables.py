"""Large tables: the same answers from hash tables in files as from maps in memory, and the same bytes every time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tristage.errors import ArtifactError
from tristage.export import onnx_graph
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow import dictionary, fitted, perfect_hash
from tristage.export.workflow.dictionary import Numbers, number_rows
from tristage.export.workflow.fitted import frame_table
from tristage.export.workflow.values import Value
from tristage.fingerprint import DERIVED, fingerprints

nvt = pytest.importorskip("nvtabular")
ops = nvt.ops

sys.path.append(str(Path(__file__).parent))
import test_workflow_compiler as small  # noqa: E402
import test_workflow_more as more  # noqa: E402
from test_workflow_compiler import FIT, NEW, _own_folder, agree, fit  # noqa: E402, F401


@pytest.fixture
def large_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Everything is large, and parts are small."""
    folder = tmp_path / "tables"
    folder.mkdir()
    monkeypatch.setattr(dictionary, "LARGE", 1)
    monkeypatch.setattr(onnx_graph, "LARGE", 1)
    monkeypatch.setattr(perfect_hash, "_PART", 3)
    monkeypatch.setattr(perfect_hash, "CHUNK", 5)
    monkeypatch.setattr(fitted, "CHUNK", 5)
    small.TABLES[0] = folder
    yield folder
    small.TABLES[0] = None


@pytest.mark.usefixtures("large_tables")
class TestCategorify(small.TestCategorify):
    """As with small tables."""


@pytest.mark.usefixtures("large_tables")
class TestTargetEncoding(small.TestTargetEncoding):
    """As with small tables."""


@pytest.mark.usefixtures("large_tables")
class TestJoinGroupby(small.TestJoinGroupby):
    """As with small tables."""


@pytest.mark.usefixtures("large_tables")
class TestSingleTable(more.TestSingleTable):
    """As with small tables."""


@pytest.mark.usefixtures("large_tables")
class TestJoinExternal(more.TestJoinExternal):
    """As with small tables."""


def _look_up(keys: Any, wanted: Any, folder: Path | None) -> tuple[Numbers, np.ndarray]:
    """Numbers of fitted keys, and those that the graph finds for others."""
    import onnxruntime

    text = isinstance(wanted, list)
    graph = GraphBuilder(folder)
    value = Value(
        graph.input("key", "string" if text else str(wanted.dtype), 1), "string" if text else str(wanted.dtype)
    )
    number = number_rows(graph, [value], frame_table(pd.DataFrame({"key": keys}), "a test"), ["key"])
    model = graph.model([("number", number.tensor, "int64", 1)])
    file = (folder or Path()) / "look_up.onnx"
    file.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(file)
    (name,) = (value.name for value in session.get_inputs())
    assert name == (DERIVED + "key" if text else "key")
    feed = fingerprints(wanted) if text else wanted
    return number, session.run(None, {name: feed.reshape(-1, 1)})[0][:, 0]


class TestHashTable:
    @given(
        keys=st.sets(st.integers(-(2**63) + 2, 2**63 - 1), min_size=2, max_size=200),
        others=st.lists(st.integers(-(2**63) + 2, 2**63 - 1), max_size=50),
    )
    @settings(max_examples=60, deadline=None)
    def test_every_key_has_its_number(self, keys: set[int], others: list[int], tmp_path_factory: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dictionary, "LARGE", 1)
            patch.setattr(perfect_hash, "_PART", 16)
            known = np.array(sorted(keys), np.int64)
            wanted = np.array([*known.tolist(), *others], np.int64)
            number, found = _look_up(known, wanted, tmp_path_factory.mktemp("t"))
        of = dict(zip(known.tolist(), number.rows.tolist(), strict=True))
        assert found.tolist() == [of.get(key, number.unseen) for key in wanted.tolist()]
        assert len({*of.values(), number.null}) == len(keys) + 1
        assert max(of.values()) < number.unseen

    @pytest.mark.parametrize(
        "keys",
        [
            np.arange(100_000),
            np.arange(100_000) * 4096,
            np.arange(100_000) << 44,
            -np.arange(100_000),
            np.random.default_rng(0).integers(-(2**62), 2**62, 100_000),
        ],
        ids=["one after another", "pages", "upper bits", "negative", "random"],
    )
    def test_keys_of_every_pattern(self, keys: np.ndarray, tmp_path: Path) -> None:
        made = perfect_hash.build(GraphBuilder(tmp_path), keys.astype(np.int64), fitted.NULL_KEY)
        np.testing.assert_array_equal(made.keys[made.rows], keys)
        assert made.keys[made.null] == fitted.NULL_KEY
        assert len({made.null, *made.rows.tolist()}) == len(keys) + 1

    def test_more_keys_than_a_chunk_and_a_part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(perfect_hash, "_PART", 50_000)
        keys = np.random.default_rng(1).permutation(300_000).astype(np.int64) * 7
        number, found = _look_up(keys, np.concatenate([keys, keys + 1]), tmp_path)
        np.testing.assert_array_equal(found[: len(keys)], number.rows)
        assert (found[len(keys) :] == number.unseen).all()

    def test_texts(self, tmp_path: Path) -> None:
        keys = [f"user {number} é" for number in range(70_000)]
        number, found = _look_up(keys, [*keys[::100], "user", "", "\x01"], tmp_path)
        np.testing.assert_array_equal(found[:-3], number.rows[::100])
        assert found[-3:].tolist() == [number.unseen, number.unseen, number.null]

    def test_a_fingerprint_of_two_keys(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fitted, "fingerprints", lambda texts: np.array([len(text) for text in texts], np.int64))
        with pytest.raises(ArtifactError, match="'ab' and 'cd' have one fingerprint"):
            _look_up(["a", "ab", "cd"], ["a"], tmp_path)

    def test_a_fingerprint_of_two_keys_of_a_large_table(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = fitted.fingerprints
        alike = {"user 3": "user 69999"}
        monkeypatch.setattr(fitted, "fingerprints", lambda texts: made([alike.get(text, text) for text in texts]))
        monkeypatch.setattr(fitted, "CHUNK", 1 << 12)
        with pytest.raises(ArtifactError, match="two of the fitted keys of key have one fingerprint"):
            _look_up([f"user {number}" for number in range(70_000)], ["a"], tmp_path)

    def test_as_many_key_sets_as_dictionaries(self, large_tables: Path) -> None:
        """However many tables and statistics hang on a key, it is looked up once."""
        nodes = (["word"] >> ops.Categorify()) + (
            ["word"]
            >> ops.Rename(postfix="_s")
            >> ops.JoinGroupby(cont_cols=["x64", "n64"], stats=["mean", "std", "sum"])
        )
        served = agree(fit(nodes, FIT), FIT, NEW, dtypes=False)
        compares = [node for node in served.compiled.graph._nodes if node.op_type == "BitShift"]
        assert len(compares) == 2  # a bucket, and a place in it

    def test_same_files_every_time(self, large_tables: Path, tmp_path: Path) -> None:
        workflow = fit(["u", "word"] >> ops.Categorify(), FIT)
        names = []
        for number in range(2):
            small.TABLES[0] = tmp_path / f"again {number}"
            small.TABLES[0].mkdir()
            small.serve(workflow)
            files = sorted(small.TABLES[0].glob("table-*"))
            names.append([(file.name, file.read_bytes()) for file in files])
        assert names[0] == names[1]
        assert len(names[0]) > 4
