"""The recurrence engine: equal to torch's layers and to the definition in float64; safe on damaged files."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tristage.export.rewrites.cell import Cell
from tristage.export.rewrites.pack import pack
from tristage.serving.graph import GraphError
from tristage.serving.program_file import RecurrenceCall
from tristage.serving.recurrence import RecurrenceEngine, RecurrenceError, available
from tristage.serving.recurrence.call import Recurrence
from tristage.serving.recurrence.engine import MAKES

KINDS = ("GRU after", "GRU before", "LSTM")
VECTORS = ("any", "middle", "wide")


def cell_of(kind: str, width: int, inputs: int = 7, seed: int = 0) -> Cell:
    draw = np.random.default_rng(seed)
    gates = 4 if kind == "LSTM" else 3

    def some(*shape: int) -> np.ndarray:
        return draw.normal(scale=0.6, size=shape).astype(np.float32)

    late = some(gates * width)
    kernel, recurrent, bias = some(inputs, gates * width), some(width, gates * width) / width**0.5, some(gates * width)
    return Cell(kind.split()[0], kernel, recurrent, bias, late, kind != "GRU before")


def projected(cell: Cell, inputs: np.ndarray) -> np.ndarray:
    kernel, bias = cell.projection()
    return (inputs.astype(np.float64) @ kernel + bias).astype(np.float32)


def opened(cell: Cell, folder: Path, **options: Any) -> RecurrenceEngine:
    return RecurrenceEngine(folder / pack(cell, folder, **{"backwards": False, "zeros": False, **options}))


def turned(values: np.ndarray) -> np.ndarray:
    """[steps, rows, ...] as the engine has it, [rows, steps, ...], and back."""
    return np.ascontiguousarray(np.swapaxes(values, 0, 1))


def run(engine: RecurrenceEngine, inputs: np.ndarray, mask: Any = None, *makes: str) -> dict[str, np.ndarray]:
    made = engine.run(turned(inputs), None if mask is None else turned(mask), makes or MAKES)
    return {name: turned(values) if name == "every" else values for name, values in made.items()}


def agree(made: dict[str, np.ndarray], cell: Cell, inputs: np.ndarray, mask: Any = None, zeros: bool = False) -> None:
    wanted = cell.answers(inputs.astype(np.float64), None if mask is None else mask[:, :, None], zeros)
    np.testing.assert_allclose(made["every"], wanted["every"], atol=1e-6)
    np.testing.assert_allclose(made["last"], wanted["h"], atol=1e-6)
    if cell.kind == "LSTM":
        np.testing.assert_allclose(made["cells"], wanted["c"], atol=2e-6)


def test_the_engine_is_built() -> None:
    assert available(), "the recurrence engine was not compiled; see the output of `pip install -v .`"


@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "steps"), [(1, 3), (5, 1), (16, 4), (17, 9), (64, 12), (100, 3)])
def test_equals_the_definition(
    kind: str, width: int, steps: int, vectors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRISTAGE_VECTORS", vectors)
    cell = cell_of(kind, width)
    engine = opened(cell, tmp_path)
    draw = np.random.default_rng(1)
    for rows in (0, 1, 2, 3, 5, 6, 7, 47, 48, 49, 130):
        inputs = draw.normal(size=(steps, rows, 7)).astype(np.float32) * 2
        agree(run(engine, projected(cell, inputs)), cell, inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zeros", [False, True])
def test_masks_and_directions(kind: str, zeros: bool, tmp_path: Path) -> None:
    cell = cell_of(kind, 20)
    draw = np.random.default_rng(2)
    inputs, mask = draw.normal(size=(11, 60, 7)).astype(np.float32), draw.random((11, 60)) < 0.5
    mask[:, 0] = False
    mask[4] = False
    agree(run(opened(cell, tmp_path, zeros=zeros), projected(cell, inputs), mask), cell, inputs, mask, zeros)
    made = run(opened(cell, tmp_path, zeros=zeros, backwards=True), projected(cell, inputs), mask)
    made["every"] = made["every"][::-1]
    agree(made, cell, inputs[::-1], mask[::-1], zeros)
    # what is not asked for is not made, and the rest is the same
    engine = opened(cell, tmp_path, zeros=zeros, backwards=True)
    (last,) = run(engine, projected(cell, inputs), mask, "last").values()
    np.testing.assert_array_equal(last, made["last"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_looked_up(kind: str, tmp_path: Path) -> None:
    cell = cell_of(kind, 24)
    words = np.random.default_rng(3).normal(size=(50, 7)).astype(np.float32)
    table = projected(cell, words)
    engine = opened(cell, tmp_path, rows=50, table=(table[:20], table[20:]))
    assert engine.rows == 50
    ids = np.random.default_rng(4).integers(-50, 50, (512, 9))
    agree(run(engine, ids), cell, words[ids])
    agree(run(engine, ids.astype(np.int32)), cell, words[ids])  # converted
    strided = engine.run(ids.T)  # not contiguous
    np.testing.assert_array_equal(strided["last"], run(engine, ids)["last"])
    for wrong in (50, -51, 2**62):
        ids[3, 3] = wrong
        with pytest.raises(RecurrenceError, match=f"id {wrong} is not in the table, which has 50 rows"):
            engine.run(ids)


@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("kind", ["GRU after", "LSTM"])
def test_equals_torch_on_strange_numbers(
    kind: str, vectors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("TRISTAGE_VECTORS", vectors)
    torch.manual_seed(0)
    layer = (torch.nn.LSTM if kind == "LSTM" else torch.nn.GRU)(5, 33).eval()
    order = [0, 3, 1, 2] if kind == "LSTM" else [1, 0, 2]  # torch's gates are i, f, g, o and r, z, n

    def ours(weights: Any) -> np.ndarray:
        parts = np.split(weights.detach().numpy().T, len(order), axis=-1)
        return np.concatenate([parts[gate] for gate in order], axis=-1)

    cell = Cell(kind.split()[0], *map(ours, layer._parameters.values()))
    inputs = np.random.default_rng(5).normal(size=(6, 70, 5)).astype(np.float32)
    for row, value in enumerate([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38, 1e-45, 100.0, -100.0, 0.0]):
        inputs[2, row] = value
        inputs[2, row + 20, 3] = value
    with torch.inference_mode():
        every, state = layer(torch.from_numpy(inputs))
    with np.errstate(invalid="ignore", over="ignore"):
        kernel, bias = cell.projection()
        given = (torch.from_numpy(inputs) @ torch.from_numpy(np.ascontiguousarray(kernel))).numpy() + bias
    made = run(opened(cell, tmp_path), given)
    last = state[0] if kind == "LSTM" else state
    # where sums overflow, it hangs on the order of adding whether they are infinite or no number
    certain = [row for row in range(70) if row % 20 not in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(made["every"][:, certain], every.numpy()[:, certain], atol=2e-6)
    np.testing.assert_allclose(made["last"][certain], last[0].numpy()[certain], atol=2e-6)
    assert np.isnan(made["last"][0]).all()


def test_many_threads(tmp_path: Path) -> None:
    cell = cell_of("GRU after", 32)
    engine = opened(cell, tmp_path)
    given = projected(cell, np.random.default_rng(6).normal(size=(20, 100, 7)))
    wanted = run(engine, given)["last"]
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: run(engine, given)["last"], range(16)):
            np.testing.assert_array_equal(made, wanted)


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    names = {pack(cell_of("LSTM", 9), tmp_path, backwards=False, zeros=True) for _ in range(2)}
    assert len(names) == 1
    assert [path.name for path in tmp_path.iterdir()] == list(names)
    assert names.isdisjoint({pack(cell_of("LSTM", 9), tmp_path, backwards=True, zeros=True)})


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    cell = cell_of("GRU after", 4)
    engine = opened(cell, tmp_path)
    good = np.zeros((3, 2, 12), np.float32)
    for inputs, mask in ((good[..., :11], None), (good[0], None), (good, np.ones((2, 3), bool))):
        with pytest.raises((RecurrenceError, IndexError)):
            engine.run(inputs, mask)


def test_damaged_files(tmp_path: Path) -> None:
    cell = cell_of("GRU before", 6)
    name = pack(cell, tmp_path, backwards=False, zeros=False, rows=3, table=[np.zeros((3, 18), np.float32)])
    whole = (tmp_path / name).read_bytes()
    bad = tmp_path / "bad.bin"
    with pytest.raises(RecurrenceError, match="cannot be opened"):
        RecurrenceEngine(bad)
    for content in (b"", b"x", whole[:-64], whole[:100], whole[:200] + b"\1" + whole[201:]):
        bad.write_bytes(content)
        with pytest.raises(RecurrenceError, match=r"bad\.bin"):
            RecurrenceEngine(bad)
    with pytest.raises(GraphError, match=r"bad\.bin"):
        Recurrence.open(tmp_path, RecurrenceCall("bad.bin", "x", None, {"last": "y"}))
    # whatever the header says, with a checksum that fits: refused, or answered within bounds
    draw = np.random.default_rng(7)
    outcomes, sizes = set(), [0, 1, 2, 3, 5, 6, 7, 16, 2**14, 2**15, 2**31, 2**40, 2**63, 2**64 - 1]
    for _ in range(3000):
        forged = bytearray(whole)
        at = 16 + 8 * int(draw.integers(0, 6))
        value = sizes[draw.integers(len(sizes))]
        forged[at : at + 8] = value.to_bytes(8, "little")
        forged[12:16] = zlib.crc32(forged[16:]).to_bytes(4, "little")
        bad.write_bytes(forged)
        try:
            engine = RecurrenceEngine(bad)
        except RecurrenceError:
            outcomes.add("refused")
            continue
        outcomes.add("opened")
        engine.run(np.zeros((2, 3), np.int64) if engine.rows else np.zeros((2, 3, 3 * engine.width), np.float32))
    assert outcomes == {"refused", "opened"}
