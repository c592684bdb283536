"""Distributions and the population stability index: by hand, against SciPy's reading of it, on awkward columns."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tristage.client import encode
from tristage.columns import NULL_STRING, Column, Signature
from tristage.distribution import Distribution, count, describe, psi
from tristage.export.golden import write_reference
from tristage.gateway.drift import Drift, read_reference

NUMBER, CODE = Column("x", "float32", nullable=True), Column("c", "int64")
WORD, LIST = Column("w", "string", nullable=True), Column("l", "int64", 4, 0)
RNG = np.random.default_rng(9)


def wide(values: object, dtype: object = None) -> np.ndarray:
    return np.asarray(values, dtype).reshape(-1, 1)


class TestIndex:
    def test_by_hand(self) -> None:
        half = Distribution("values", (1, 2), (0.5, 0.5, 0.0, 0.0))
        assert psi(half, np.array([50, 50, 0, 0])) == 0
        # (0.75 - 0.5) ln(0.75 / 0.5) + (0.25 - 0.5) ln(0.25 / 0.5)
        assert psi(half, np.array([75, 25, 0, 0])) == pytest.approx(0.25 * math.log(1.5) + 0.25 * math.log(2))

    def test_it_is_a_symmetric_sum_of_two_divergences(self) -> None:
        entropy = pytest.importorskip("scipy.stats").entropy
        p, q = RNG.random(7) + 0.1, RNG.random(7) + 0.1
        p, q = p / p.sum(), q / q.sum()
        found = psi(Distribution("numbers", tuple(range(5)), tuple(p)), q)
        assert found == pytest.approx(entropy(p, q) + entropy(q, p))

    def test_bins_that_were_empty(self) -> None:
        one = Distribution("values", (1,), (1.0, 0.0, 0.0))
        assert 5 < psi(one, np.array([0, 10, 0])) < 20
        assert math.isfinite(psi(one, np.zeros(3)))


class TestDescribe:
    def test_numbers_have_ten_equal_bins_and_one_of_nulls(self) -> None:
        values = np.concatenate([RNG.normal(size=9000), np.full(1000, np.nan)])
        made = describe(NUMBER, wide(values, np.float32))
        assert (made.kind, len(made.bounds)) == ("numbers", 9)
        np.testing.assert_allclose(made.shares, [0.09] * 10 + [0.1], atol=1e-3)

    @pytest.mark.parametrize("values", [[], [math.nan], [1.0], [1.0, 1.0], [math.inf, -math.inf, 0], [3e38, -3e38]])
    def test_few_and_odd_numbers(self, values: list[float]) -> None:
        made = describe(NUMBER, wide(values, np.float32))
        json.dumps(asdict(made), allow_nan=False)
        assert sum(made.shares) == pytest.approx(1 if values else 0)
        found = count(made, NUMBER, wide(values, np.float32))
        assert found.sum() == len(values)
        assert psi(made, found) == pytest.approx(0, abs=1e-9 if values else 99)

    def test_codes_have_a_bin_each(self) -> None:
        made = describe(CODE, wide([3, 3, 7, -1]))
        assert made == Distribution("values", (-1, 3, 7), (0.25, 0.5, 0.25, 0, 0))
        np.testing.assert_array_equal(count(made, CODE, wide([3, 8, -2, 7, 2**62])), [0, 1, 1, 3, 0])
        assert describe(CODE, wide(range(1000))).kind == "numbers"

    def test_texts(self) -> None:
        values = [*(["de"] * 3), "fr", NULL_STRING, "ü".encode()]
        made = describe(WORD, wide(values, object))
        assert made.bounds == ("de", "fr", "ü")
        np.testing.assert_allclose(made.shares, [3 / 6, 1 / 6, 1 / 6, 0, 1 / 6])
        np.testing.assert_array_equal(count(made, WORD, wide([b"fr", "x", NULL_STRING], object)), [0, 1, 0, 1, 1])

    def test_of_many_texts_the_twenty_most_frequent(self) -> None:
        made = describe(WORD, wide([f"w{n % 100}" for n in range(150)], object))
        assert len(made.bounds) == 20
        assert made.shares[-2] == pytest.approx(110 / 150)

    def test_lists_by_their_length(self) -> None:
        made = describe(LIST, np.array([[1, 2, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4]]))
        assert made.kind == "lengths"
        assert psi(made, count(made, LIST, np.array([[9, 9, 0, 0], [0, 0, 0, 0], [7, 7, 7, 7]]))) == pytest.approx(0)
        texts = Column("t", "string", 2, "")
        assert describe(texts, np.array([["a", ""], ["", ""]], object)).shares[-1] == 0
        floats = Column("f", "float32", 2, math.nan)
        assert count(Distribution("lengths", (0.0, 1.0), (0,) * 4), floats, np.array([[1, np.nan]])).tolist() == [
            0, 1, 0, 0
        ]  # fmt: skip

    def test_lists_that_are_always_full_by_their_values(self) -> None:
        ids, scores = Column("ids", "int64", 2), Column("scores", "float32", 2)
        made = describe(ids, np.array([[7, 9], [9, 3]]))
        assert made == Distribution("values", (3, 7, 9), (0.25, 0.25, 0.5, 0, 0))
        np.testing.assert_array_equal(count(made, ids, np.array([[7, 8]])), [0, 1, 0, 1, 0])
        made = describe(scores, np.array([[0.5, np.nan], [0.25, 1.0]], np.float32))
        assert made.kind == "numbers"
        assert made.shares[-1] == 0.25


def rows(number: int, seed: int, shift: float = 0.0) -> list[dict[str, object]]:
    draw = np.random.default_rng(seed)
    return [
        {"x": float(x) + shift, "w": str(w), "l": list(range(n))}
        for x, w, n in zip(
            draw.normal(size=number), draw.choice(["a", "b"], number), draw.integers(0, 5, number), strict=True
        )
    ]


SIGNATURE = Signature("s", 64, (NUMBER, WORD, LIST), (Column("y", "float32"),))


class TestDrift:
    def watching(self, folder: Path) -> Drift:
        golden = encode(rows(2000, 1), SIGNATURE)
        write_reference(folder, golden, SIGNATURE, {"y": golden["x"].ravel()})
        drift = Drift()
        drift.follow(SIGNATURE, read_reference(folder))
        return drift

    def send(self, drift: Drift, given: list[dict[str, object]]) -> None:
        tensors = encode(given, SIGNATURE)
        drift.observe(tensors, {"y": tensors["x"]})
        drift.settle()

    def test_a_shifted_column_is_seen_and_no_other(self, tmp_path: Path) -> None:
        drift = self.watching(tmp_path)
        self.send(drift, rows(100, 2))
        assert drift.psi() == {}
        assert drift.now()["known"]
        self.send(drift, rows(1900, 3))
        assert max(drift.psi().values()) < 0.05
        for seed in range(10, 15):
            self.send(drift, rows(4000, seed, shift=1.0))
        found = drift.psi()
        assert min(found["x"], found["y"]) > 0.25
        assert max(found["w"], found["l"]) < 0.05
        assert [each["side"] for each in drift.now()["columns"][:2]] in (["input", "output"], ["output", "input"])

    def test_what_is_over_is_forgotten(self, tmp_path: Path) -> None:
        drift = self.watching(tmp_path)
        self.send(drift, rows(10_000, 4, shift=5.0))
        assert drift.psi()["x"] > 1
        for seed in range(20, 30):
            self.send(drift, rows(10_000, seed))
        assert drift.psi()["x"] < 0.05

    def test_memory_is_bounded_and_another_export_begins_anew(self, tmp_path: Path) -> None:
        drift = self.watching(tmp_path)
        tensors = encode(rows(5000, 5), SIGNATURE)
        for _ in range(9):
            drift.observe(tensors, {"y": tensors["x"]})
        drift.settle()
        assert drift.rows == 20_000
        drift.follow(SIGNATURE, read_reference(tmp_path))
        assert drift.rows == 0

    def test_rows_one_by_one_count_as_they_would_together(self, tmp_path: Path) -> None:
        whole, single = self.watching(tmp_path), self.watching(tmp_path)
        given = rows(700, 7, shift=0.5)
        self.send(whole, given)
        tensors = encode(given, SIGNATURE)
        for number, row in enumerate(given[:500]):
            single.observe_row(row, {"y": tensors["x"][number].item()})
        rest = {name: array[500:] for name, array in tensors.items()}
        single.observe(rest, {"y": rest["x"].ravel()})
        single.settle()
        assert single.rows == whole.rows == 700
        assert single.psi() == whole.psi()
        for _ in range(20_001):
            single.observe_row(given[0], {"y": 0.0})
        single.settle()
        assert single.rows == 20_700

    def test_it_counts_beside_the_requests(self, tmp_path: Path) -> None:
        drift = self.watching(tmp_path)
        tensors = encode(rows(500, 6), SIGNATURE)

        async def run() -> None:
            watching = asyncio.create_task(drift.watch())
            drift.observe(tensors, {"y": tensors["x"]})
            while not drift.rows:
                await asyncio.sleep(0.05)
            watching.cancel()

        asyncio.run(asyncio.wait_for(run(), 30))
        assert drift.psi()["x"] < 0.1

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"columns": {"x": 3}}', '{"columns": {"x": {"kind": "numbers"}}}']
    )
    def test_a_damaged_reference_is_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "reference.json").write_text(text)
        assert read_reference(tmp_path) == {}
        assert read_reference(None) == {}
