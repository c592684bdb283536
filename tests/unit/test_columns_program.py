"""What the columns engine is left of a model, its files, and that nothing in them is trusted."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from columns_parity import Both, awkward

from tristage.export.onnx_graph import GraphBuilder
from tristage.export.repository import save_model
from tristage.serving.columns import ColumnsEngine, ColumnsError
from tristage.serving.columns.call import Columns
from tristage.serving.program import Program
from tristage.serving.program_file import ColumnsCall, ProgramFile
from tristage.serving.runner import open_folder


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


def long_graph(folder: Path) -> tuple[onnx.ModelProto, GraphBuilder]:
    """Enough nodes for a call of their own, with a product of matrices behind them."""
    graph = GraphBuilder(folder)
    a = graph.input("a", "float32", 4)
    for number in range(20):
        a = graph.add("Add", a, graph.scalar(number, "float32"))
    product = graph.add("MatMul", a, graph.constant(np.eye(4, dtype=np.float32)))
    after = graph.add("Neg", product)
    return graph.model([("columns", a, "float32", 4), ("product", after, "float32", 4)]), graph


def test_a_model_is_cut_where_nodes_are_many(tmp_path: Path) -> None:
    model, _ = long_graph(tmp_path)
    (tmp_path / "own").mkdir()
    save_model(model, tmp_path / "own", tmp_path)
    kinds = [type(part) for part in ProgramFile.read(tmp_path / "own" / "program.json").parts]
    assert kinds == [ColumnsCall, str]  # and the one node behind the product stays with it
    program = Program.open(tmp_path / "own")
    given = awkward("float32", 70, 4)
    wanted = given + np.float32(0)
    for number in range(1, 20):
        wanted = wanted + np.float32(number)
    made = program.run({"a": given})
    np.testing.assert_array_equal(made["columns"], wanted)
    assert program.run({"a": given[:0]})["product"].shape == (0, 4)


def test_a_few_nodes_are_a_call_where_they_stand_alone(tmp_path: Path) -> None:
    """Without them there would be a call of ONNX Runtime."""
    graph = GraphBuilder(tmp_path)
    a = graph.input("a", "float32", 4)
    model = graph.model([("minus", graph.add("Neg", a), "float32", 4)])
    (tmp_path / "own").mkdir()
    save_model(model, tmp_path / "own", tmp_path)
    assert [type(part) for part in ProgramFile.read(tmp_path / "own" / "program.json").parts] == [ColumnsCall]


@pytest.mark.parametrize("alone", [True, False])
def test_what_is_handed_through_passes_a_part(tmp_path: Path, alone: bool) -> None:
    graph = GraphBuilder(tmp_path)
    a, text = graph.input("a", "float32", 2), graph.input("text", "string", 1)
    outputs = [("same", a, "float32", 2), ("words", text, "string", 1), ("more", graph.add("Neg", a), "float32", 2)]
    (tmp_path / "own").mkdir()
    save_model(graph.model(outputs[:1] if alone else outputs), tmp_path / "own", tmp_path)
    given = {"a": np.array([[1, 2], [3, 4]], np.float32), "text": np.array([["x"], ["y"]], object)}
    made = open_folder(tmp_path / "own").run(given)
    wanted = {"same": given["a"], "words": given["text"], "more": -given["a"]}
    for name, values in made.items():
        np.testing.assert_array_equal(values, wanted[name])
    assert len(made) == (1 if alone else 3)


def test_without_the_engine_its_graph_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = long_graph(tmp_path)
    (tmp_path / "own").mkdir()
    save_model(model, tmp_path / "own", tmp_path)
    given = {"a": awkward("float32", 9, 4)}
    wanted = Program.open(tmp_path / "own").run(given)
    monkeypatch.setattr("tristage.serving.program.available", lambda: False)
    program = Program.open(tmp_path / "own")
    assert not any(isinstance(part, Columns) for part in program.parts)
    for name, values in program.run(given).items():
        np.testing.assert_array_equal(values, wanted[name])


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_model(long_graph(tmp_path)[0], tmp_path / name, tmp_path)
        files.append((tmp_path / name / "columns0.bin").read_bytes())
    assert files[0] == files[1]


def test_texts_come_first(tmp_path: Path) -> None:
    """What texts depend on is ONNX Runtime's, and is no reason to cut what does not depend on them."""
    graph = GraphBuilder(tmp_path)
    number = graph.label_encode(graph.input("text", "string", 1), {"a": 0, "b": 1}, 2)
    others = graph.input("other", "int64", 1)
    for step in range(12):
        number = graph.add("Add", number, graph.scalar(step, "int64"))
        others = graph.add("Mul", others, graph.scalar(step + 2, "int64"))
    model = graph.model([("sum", graph.add("Add", number, others), "int64", 1)])
    (tmp_path / "own").mkdir()
    save_model(model, tmp_path / "own", tmp_path)
    assert [type(part) for part in ProgramFile.read(tmp_path / "own" / "program.json").parts] == [str, ColumnsCall]
    made = Program.open(tmp_path / "own").run({"text": np.array([["b"], ["?"]], object), "other": np.ones((2, 1), int)})
    assert made["sum"].ravel().tolist() == [1 + 66 + 6227020800, 2 + 66 + 6227020800]


def forged(path: Path) -> None:
    """Give a packed file that was changed the checksum that it then needs."""
    data = bytearray(path.read_bytes())
    data[12:16] = zlib.crc32(data[16:]).to_bytes(4, "little")
    path.write_bytes(data)


def test_damaged_files(both: Both, tmp_path: Path) -> None:
    a = both.input("a", "float32", 3)
    both.open((both.graph.add("Mul", a, a), "float32", 3))
    file = tmp_path / "own" / "columns0.bin"
    whole = file.read_bytes()
    with pytest.raises(ColumnsError, match="cannot be opened"):
        ColumnsEngine(tmp_path / "none.bin", [])
    for cut in (0, 10, 63, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(ColumnsError):
            ColumnsEngine(file, [])
    file.write_bytes(whole[:24] + b"\1\2\3\4" + whole[28:])
    forged(file)
    with pytest.raises(ColumnsError, match="other operations"):
        ColumnsEngine(file, [])


def test_forged_files_are_refused_or_harmless(both: Both, tmp_path: Path) -> None:
    """Whatever a file says, opening it and answering from it reads and writes nothing else's memory."""
    g = both.graph
    a, ids = both.input("a", "float32", 3), both.input("ids", "int64", 4)
    number = g.add("Mod", ids, g.scalar(20, "int64"))
    labels = g.label_encode(number, {1: 2, 3: 4}, 0)
    table = np.ones((20, 5), np.float32)
    pooled = g.add(
        "ReduceSum", g.add("Gather", g.constant(table), number, axis=0), g.constant(np.array([1])), keepdims=0
    )
    both.open(
        (g.add("Mul", a, g.columns(a, [1], 3)), "float32", 3),
        (g.concat([g.add("Add", labels, number), ids]), "int64", 8),
        (pooled, "float32", 5),
        (g.add("ReduceSum", ids, g.constant(np.array([1])), keepdims=1), "int64", 1),
    )
    file = tmp_path / "own" / "columns0.bin"
    whole = file.read_bytes()
    draw = np.random.default_rng(0)
    given = [awkward("float32", 70, 3), awkward("int64", 70, 4)]
    shapes = (("float32", 3), ("int64", 8), ("float32", 5), ("int64", 1))
    values = (0, 1, 2, 7, 64, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
    opened = 0
    for _ in range(1500):
        at, size = int(draw.integers(32, len(whole) - 8)), int(draw.choice([1, 4, 8]))
        file.write_bytes(
            whole[:at] + values[draw.integers(len(values))].to_bytes(8, "little")[:size] + whole[at + size :]
        )
        forged(file)
        made = [np.empty((70, width), dtype) for dtype, width in shapes]
        try:
            ColumnsEngine(file, []).run(70, given, made)
            opened += 1
        except ColumnsError:
            pass
    assert opened > 100


def test_a_table_that_is_cut_short(both: Both, tmp_path: Path) -> None:
    table = both.graph.array((300_000,), "float64")
    table[:] = 1
    a = both.graph.add("Mod", both.input("a", "int64"), both.graph.scalar(300_000, "int64"))
    both.open((both.graph.add("Gather", both.graph.constant(table), a, axis=0), "float64", 1))
    (file,) = (tmp_path / "own").glob("table-*.bin")
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-8])
    with pytest.raises(ColumnsError, match="cut short"):
        ColumnsEngine(tmp_path / "own" / "columns0.bin", [file])
