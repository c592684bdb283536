"""Retrieval steps: what is served is what Faiss answers each query alone, bit for bit, whatever rows come together."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

from tristage.columns import Column
from tristage.errors import ArtifactError, ParityError, StackError
from tristage.export import export
from tristage.export.check import check_parity, run_placement
from tristage.export.lower import lower
from tristage.export.place import Placement, fuse, place
from tristage.export.reference import reference_answers
from tristage.export.size.repository import sizes_of
from tristage.export.stack_file import read_stack
from tristage.manifest import check_files, read_manifest
from tristage.serving.graph import GraphError
from tristage.serving.program_file import SearchCall
from tristage.serving.search import Search
from tristage.stack import NetStep, RetrieveStep, Stack

faiss = pytest.importorskip("faiss")
WIDTH = 16
ITEMS = 3000
RANDOM = np.random.default_rng(3)
VECTORS = RANDOM.normal(size=(ITEMS, WIDTH)).astype(np.float32)
IDS = RANDOM.permutation(np.arange(ITEMS, dtype=np.int64) * 7 + 2**40)


def _flat(metric: int) -> Any:
    index = faiss.IndexFlat(WIDTH, metric)
    index.add(VECTORS)
    return index


def _hnsw(metric: int) -> Any:
    index = faiss.IndexHNSWFlat(WIDTH, 8, metric)
    index.hnsw.efSearch = 40
    index.add(VECTORS)
    return index


def _mapped(kind: Any, inner: Any) -> Any:
    index = kind(inner)
    index.add_with_ids(VECTORS, IDS)
    return index


def _factory(description: str) -> Any:
    index = faiss.index_factory(WIDTH, description, faiss.METRIC_INNER_PRODUCT)
    index.train(VECTORS)
    index.add(VECTORS)
    return index


INDEXES = {
    "flat_ip": lambda: _flat(faiss.METRIC_INNER_PRODUCT),
    "flat_l2": lambda: _flat(faiss.METRIC_L2),
    "hnsw_ip": lambda: _hnsw(faiss.METRIC_INNER_PRODUCT),
    "hnsw_l2": lambda: _hnsw(faiss.METRIC_L2),
    "ids_of_flat": lambda: _mapped(faiss.IndexIDMap, faiss.IndexFlatIP(WIDTH)),
    "ids_of_hnsw": lambda: _mapped(faiss.IndexIDMap2, faiss.IndexHNSWFlat(WIDTH, 8, faiss.METRIC_INNER_PRODUCT)),
    "cells": lambda: _factory("IVF16,Flat"),
    "codes": lambda: _factory("PQ8x4"),
}


def awkward() -> np.ndarray:
    """Queries that are none, of zeros, infinite, of items themselves, of halves between two items; and plain ones."""
    rows = RANDOM.normal(size=(60, WIDTH)).astype(np.float32)
    rows[0] = np.nan
    rows[1, 3] = np.nan
    rows[2] = 0
    rows[3] = -0.0
    rows[4, 0] = np.inf
    rows[5, 0] = -np.inf
    rows[6] = 1e38
    rows[7] = 1e-45
    rows[8:12] = VECTORS[:4]
    rows[12:16] = (VECTORS[4:8] + VECTORS[8:12]) / 2
    return rows


def alone(index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Faiss itself, a query at a time."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    found = [index.search(queries[row : row + 1], k) for row in range(len(queries))]
    faiss.omp_set_num_threads(threads)
    scores, items = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(items)


def columns(width: int = WIDTH) -> dict[str, Column]:
    return {f"q{number:02}": Column(f"q{number:02}", "float32", nullable=True) for number in range(width)}


def stack(index: Any, k: int, **more: Any) -> Stack:
    outputs = {"items": "near.item*", "scores": "near.score*"}
    return Stack("s", {"near": RetrieveStep(index, tuple(columns()), k)}, outputs, **more)


def placed(index: Any, k: int, folder: Path) -> tuple[Any, Placement]:
    lowered = lower(stack(index, k), columns(), tables=folder)
    return lowered, place(lowered, 4096)


def asked(placement: Placement, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    served = run_placement(placement, {name: queries[:, [at]] for at, name in enumerate(columns())})
    return served["scores"], served["items"]


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize("k", [1, 30])
def test_it_is_what_faiss_answers(kind: str, k: int, tmp_path: Path) -> None:
    index, queries = INDEXES[kind](), awkward()
    lowered, placement = placed(index, k, tmp_path)
    scores, items = alone(index, queries, k)
    for each in (placement, fuse(placement)):
        got_scores, got_items = asked(each, queries)
        assert (got_items.dtype, got_scores.dtype) == (np.int64, np.float32)
        np.testing.assert_array_equal(got_items, items)
        np.testing.assert_array_equal(got_scores, scores)
    frame = pd.DataFrame(queries, columns=list(columns()))
    reference = reference_answers(lowered, frame)["near"]
    names = [f"{what}{number}" if k > 1 else what for what in ("item", "score") for number in range(k)]
    assert list(reference) == names
    np.testing.assert_array_equal(np.stack([reference[name] for name in names[:k]], 1), items)
    np.testing.assert_array_equal(np.stack([reference[name] for name in names[k:]], 1), scores)


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize("rows", [0, 1, 2, 19, 20])
def test_rows_are_answered_alike_whatever_comes_with_them(kind: str, rows: int, tmp_path: Path) -> None:
    index, queries = INDEXES[kind](), awkward()[:rows]
    _, placement = placed(index, 5, tmp_path)
    scores, items = asked(placement, queries)
    assert scores.shape == items.shape == (rows, 5)
    if rows:
        for got, want in zip((scores, items), alone(index, queries, 5), strict=True):
            np.testing.assert_array_equal(got, want)


def test_so_many_rows_that_faiss_would_leave_them_to_a_matrix_product(tmp_path: Path) -> None:
    index = faiss.IndexFlatIP(64)
    index.add(RANDOM.normal(size=(5000, 64)).astype(np.float32))
    queries = RANDOM.normal(size=(4000, 64)).astype(np.float32)
    scores, items = alone(index, queries, 20)
    assert not np.array_equal(index.search(queries, 20)[0], scores)  # so it does
    settings = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    faiss.write_index(index, str(tmp_path / "index"))
    found = Search.open(tmp_path, SearchCall("near", "index", "q", 64, 20, "items", "scores", None)).run({"q": queries})
    np.testing.assert_array_equal(found["scores"], scores)
    np.testing.assert_array_equal(found["items"], items)
    assert settings == (faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold)


def test_equal_vectors_come_in_the_order_that_faiss_gives_them(tmp_path: Path) -> None:
    index = faiss.IndexFlatIP(WIDTH)
    index.add(np.repeat(VECTORS[:5], 40, axis=0))
    queries = VECTORS[:50]
    for k in (7, 100, 200):
        _, placement = placed(index, k, tmp_path)
        scores, items = asked(placement, queries)
        wanted = alone(index, queries, k)
        np.testing.assert_array_equal(items, wanted[1])
        np.testing.assert_array_equal(scores, wanted[0])


@pytest.mark.parametrize("kind", ["flat_ip", "flat_l2", "hnsw_ip", "ids_of_hnsw"])
def test_more_than_there_are(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "VECTORS", VECTORS[:9])
    monkeypatch.setattr(sys.modules[__name__], "IDS", IDS[:9])
    index, queries = INDEXES[kind](), awkward()
    _, placement = placed(index, 12, tmp_path)
    scores, items = asked(placement, queries)
    wanted = alone(index, queries, 12)
    np.testing.assert_array_equal(items, wanted[1])
    np.testing.assert_array_equal(scores, wanted[0])
    assert (items[20:, 9:] == -1).all()
    assert (items[20:, :9] >= 0).all()


def test_a_net_makes_the_query_and_another_reads_what_is_found(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            return torch.tanh(self.layer(x))

    class Best(torch.nn.Module):
        def forward(self, item: Any, score: Any) -> Any:
            even = (item % 2 == 0) & (item >= 0)
            best, at = torch.where(even, score, -1e30).topk(3, dim=1)
            return {"item": torch.where(best > -1e30, item.gather(1, at), -1), "score": best}

    queries = RANDOM.normal(size=(200, WIDTH)).astype(np.float32)
    pq.write_table(pa.table({name: queries[:, at] for at, name in enumerate(columns())}), tmp_path / "golden.parquet")
    tower, best, index = Tower(), Best(), INDEXES["ids_of_hnsw"]()
    whole = Stack(
        "s",
        {
            "tower": NetStep(tower, {"x": tuple(columns())}, examples={"x": queries[:2]}),
            "near": RetrieveStep(index, "tower", 20),
            "best": NetStep(
                best,
                {"item": "near.item*", "score": "near.score*"},
                examples={"item": np.zeros((2, 20), np.int64), "score": np.zeros((2, 20), np.float32)},
            ),
        },
        {"items": "best.item*", "scores": "best.score*"},
        golden=tmp_path / "golden.parquet",
    )
    for layout in ("ensemble", "fused"):
        made = export(whole, tmp_path / layout, layout=layout)
        assert made.parity is not None
        assert max(made.parity.differences.values()) < 1e-6
        manifest = read_manifest(tmp_path / layout)
        check_files(tmp_path / layout, manifest)
        assert manifest.versions["faiss-cpu"] == faiss.__version__
        work = sizes_of(tmp_path / layout, manifest)
        assert work.parts["near"].searched == 1
        assert work.parts["near"].table_bytes > VECTORS.nbytes
    found = alone(index, tower(torch.from_numpy(queries)).detach().numpy(), 20)
    wanted = best(torch.from_numpy(found[1]), torch.from_numpy(found[0]))
    golden = pq.read_table(tmp_path / "ensemble" / "golden.parquet")
    assert golden["expected.items"].to_pylist() == wanted["item"].tolist()


def test_the_work_of_a_row(tmp_path: Path) -> None:
    export(stack(INDEXES["ids_of_flat"](), 4, golden=_golden(tmp_path)), tmp_path / "repository")
    work = sizes_of(tmp_path / "repository", read_manifest(tmp_path / "repository"))
    assert work.served.macs == ITEMS * WIDTH
    assert work.served.searched == 0


def _golden(folder: Path) -> Path:
    queries = RANDOM.normal(size=(30, WIDTH)).astype(np.float32)
    pq.write_table(pa.table({name: queries[:, at] for at, name in enumerate(columns())}), folder / "golden.parquet")
    return folder / "golden.parquet"


def test_a_file_and_the_index_itself_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    index = INDEXES["ids_of_hnsw"]()
    faiss.write_index(index, str(tmp_path / "items.faiss"))
    reads = ", ".join(columns())
    (tmp_path / "stack.yaml").write_text(
        f"name: s\ngolden: {_golden(tmp_path)}\nsteps:\n  near: {{index: items.faiss, reads: [{reads}], k: 4}}\n"
        "outputs: {items: near.item*, scores: near.score*}\n"
    )
    declared = read_stack(tmp_path / "stack.yaml")
    assert declared.steps["near"] == RetrieveStep(tmp_path.resolve() / "items.faiss", tuple(columns()), 4)
    files = [
        export(each, tmp_path / f"repository{number}").manifest.files
        for number, each in enumerate((declared, stack(index, 4, golden=tmp_path / "golden.parquet")))
    ]
    code = (
        "import sys; from pathlib import Path; from tristage.export import export; "
        "from tristage.export.stack_file import read_stack; "
        "export(read_stack(Path(sys.argv[1])), sys.argv[2], overwrite=True)"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(tmp_path / "stack.yaml"), str(tmp_path / "again")]
        subprocess.run(command, env=environment, check=True, timeout=120)
        files.append(read_manifest(tmp_path / "again").files)
    assert files[0] == files[1] == files[2] == files[3]


def _net(kind: str, dtype: int, columns: int, made: int) -> onnx.ModelProto:
    """One node that makes [rows, made] of [rows, columns]."""
    inputs, constants = ["x"], []
    if made < columns:
        inputs, constants = ["x", "axes"], [numpy_helper.from_array(np.array([1]), "axes")]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, ["y"])],
        "net",
        [helper.make_tensor_value_info("x", dtype, ["rows", columns])],
        [helper.make_tensor_value_info("y", dtype, ["rows", made])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


class TestRounding:
    """The net that makes the query rounds otherwise than its framework, and two neighbours change places."""

    def parity(self, folder: Path, outputs: dict[str, str], rows: int) -> Any:
        index = faiss.IndexFlatIP(2)
        index.add(np.eye(2, dtype=np.float32))
        steps = {
            "tower": NetStep(_net("Identity", TensorProto.FLOAT, 2, 2), {"x": ("q00", "q01")}),
            "near": RetrieveStep(index, "tower", 2),
            "last": NetStep(_net("ReduceMax", TensorProto.INT64, 2, 1), {"x": "near.item*"}),
            "of_scores": NetStep(_net("ReduceMax", TensorProto.FLOAT, 2, 1), {"x": "near.score*"}),
        }
        used = {"highest": "last.score", "best": "of_scores.score"}
        lowered = lower(Stack("s", steps, {**used, **outputs}), columns(2), tables=folder)
        tower = lowered.steps[0]

        def framework(feeds: Any) -> Any:
            (made,) = tower.body.predict(feeds)
            made[made[:, 0] == 1, 0] -= np.float32(2**-23)
            return [made]

        other = dataclasses.replace(tower, body=dataclasses.replace(tower.body, predict=framework))
        lowered = dataclasses.replace(lowered, steps=(other, *lowered.steps[1:]))
        queries = np.full((400, 2), [3, 2], np.float32)
        queries[:rows] = [1, 1 - 2**-24]
        frame = pd.DataFrame(queries, columns=list(columns(2)))
        answers = reference_answers(lowered, frame)
        assert answers["near"]["item0"][:rows].tolist() == [1] * rows
        inputs = {name: queries[:, [at]] for at, name in enumerate(columns(2))}
        return check_parity(lowered, place(lowered, 64), inputs, answers, frame, 1e-5)

    def test_no_difference_where_the_answers_are_the_same(self, tmp_path: Path) -> None:
        found = self.parity(tmp_path, {}, 200)
        assert not found.edge.any()
        assert max(found.differences.values()) < 1e-6

    def test_rows_whose_answers_change_are_left_out(self, tmp_path: Path) -> None:
        found = self.parity(tmp_path, {"items": "near.item*"}, 2)
        assert found.edge.tolist() == [True] * 2 + [False] * 398

    def test_many_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ParityError, match=r"3 of 400 golden rows .* neighbours change places, .*fewer neighbours"):
            self.parity(tmp_path, {"items": "near.item*"}, 3)


class TestRefused:
    @pytest.mark.parametrize("k", [0, -1, 1.5, "3", True, None])
    def test_k(self, k: Any) -> None:
        with pytest.raises(StackError, match=r"k is .*; give the number of neighbours"):
            RetrieveStep("items.faiss", "tower", k)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ("k: 0", r"step near: k is 0; give the number of neighbours, at least 1"),
            ("k: many", r"step near: k is 'many'"),
            ("k: 4, n: 3", r"step near has an unknown key 'n'; it may have index, reads, k"),
            ("", r"step near lacks the key 'k'"),
        ],
    )
    def test_in_a_file(self, tmp_path: Path, change: str, words: str) -> None:
        path = tmp_path / "stack.yaml"
        path.write_text(f"name: s\nsteps:\n  near: {{index: a, reads: q, {change}}}\noutputs: {{i: near.item*}}\n")
        with pytest.raises(StackError, match=words):
            read_stack(path)

    def test_files(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"step near: there is no file .*gone\.faiss; write the index there"):
            placed(tmp_path / "gone.faiss", 3, tmp_path)
        (tmp_path / "bad.faiss").write_bytes(b"garbage")
        with pytest.raises(ArtifactError, match=r"step near: .*bad\.faiss cannot be read by Faiss"):
            placed(tmp_path / "bad.faiss", 3, tmp_path)
        faiss.write_index(INDEXES["flat_ip"](), str(tmp_path / "whole"))
        (tmp_path / "short").write_bytes((tmp_path / "whole").read_bytes()[:5000])
        with pytest.raises(ArtifactError, match=r"step near: .*short cannot be read by Faiss"):
            placed(tmp_path / "short", 3, tmp_path)

    def test_what_is_no_index(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"step near: a dict is no faiss\.Index"):
            placed({}, 3, tmp_path)
        with pytest.raises(ArtifactError, match=r"step near: a IndexBinaryFlat is no faiss\.Index of float vectors"):
            placed(faiss.IndexBinaryFlat(64), 3, tmp_path)
        binary = faiss.IndexBinaryFlat(64)
        faiss.write_index_binary(binary, str(tmp_path / "binary"))
        with pytest.raises(ArtifactError, match=r"step near: .*binary cannot be read by Faiss"):
            placed(tmp_path / "binary", 3, tmp_path)

    def test_an_empty_index(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"step near: its index holds no vectors; add the items"):
            placed(faiss.IndexFlatIP(WIDTH), 3, tmp_path)

    def test_a_query_of_another_width(self, tmp_path: Path) -> None:
        steps = {"near": RetrieveStep(INDEXES["flat_ip"](), ("q00", "q01"), 3)}
        words = r"step near reads 2 numbers \(q00, q01\), and the vectors of its index have 16"
        with pytest.raises(StackError, match=words):
            lower(Stack("s", steps, {"i": "near.item*"}), columns(), tables=tmp_path)

    def test_text(self, tmp_path: Path) -> None:
        steps = {"near": RetrieveStep(faiss.IndexFlatIP(1), "word", 3)}
        steps["near"].index.add(np.ones((2, 1), np.float32))
        with pytest.raises(StackError, match=r"step near reads word, which holds text"):
            lower(Stack("s", steps, {"i": "near.item*"}), {"word": Column("word", "string")}, tables=tmp_path)

    @pytest.mark.parametrize("target", ["ngc-cpu", "ngc-gpu"])
    def test_native_targets(self, tmp_path: Path, target: str) -> None:
        words = r"step near searches a Faiss index, which none of the container's own backends does; .*pip-cpu"
        with pytest.raises(StackError, match=words):
            export(stack(INDEXES["flat_ip"](), 3, golden=_golden(tmp_path)), tmp_path / "repository", target=target)
        assert not (tmp_path / "repository").exists()

    def test_without_faiss(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _, placement = placed(INDEXES["flat_ip"](), 3, tmp_path)
        monkeypatch.setitem(sys.modules, "faiss", None)
        with pytest.raises(
            ArtifactError, match=r"step near searches a Faiss index, .*pip install 'tristage\[retrieval\]'"
        ):
            placed(tmp_path / "any", 3, tmp_path)
        with pytest.raises(ArtifactError, match=r"Faiss is not installed here"):
            run_placement(placement, {name: np.zeros((1, 1), np.float32) for name in columns()})

    def test_a_damaged_file_is_not_served(self, tmp_path: Path) -> None:
        (tmp_path / "index").write_bytes(b"IxFI" + bytes(20))
        call = SearchCall("near", "index", "q", WIDTH, 3, "items", "scores", None)
        with pytest.raises(GraphError, match=r"index cannot be read by Faiss"):
            Search.open(tmp_path, call)

    def test_queries_of_another_width(self, tmp_path: Path) -> None:
        faiss.write_index(INDEXES["flat_ip"](), str(tmp_path / "index"))
        search = Search.open(tmp_path, SearchCall("near", "index", "q", WIDTH, 3, "items", "scores", None))
        with pytest.raises(GraphError, match=r"q must be of shape \[rows, 16\], not \[2, 3\]"):
            search.run({"q": np.zeros((2, 3), np.float32)})


def test_serving_imports_faiss_only_where_an_index_is() -> None:
    code = "import sys, tristage.serving.runner; sys.exit('faiss' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_frozen_step() -> None:
    step = RetrieveStep("items.faiss", "tower", 3)
    assert step == dataclasses.replace(step)
    assert step.references() == ("tower",)
