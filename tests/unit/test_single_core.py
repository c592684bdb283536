"""The single-core comparison: what it makes of figures, and that its baseline is the training libraries themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.baselines.figures import BATCHES, WAYS, Bar, Figures, Turn, bars, ratio
from benchmarks.baselines.report import Run, document, markdown
from benchmarks.baselines.rows import EXPONENT, difference, draws
from tristage.loadtest._rows import requests_of

ROOT = Path(__file__).parents[2]


def turn(ms: float, *, p99: float | None = None, batch: int = 1, cpu: float | None = None) -> Turn:
    return Turn(10, ms, 2 * ms if p99 is None else p99, ms / batch, cpu)


def paper() -> Figures:
    """A run in which every bar of the paper size is met, just."""
    figures = Figures()
    for way, ms in (("fused", 3.0), ("floor", 2.0), ("libraries", 150.0)):
        figures.add(way, 1, turn(ms, p99=3 * ms))
    for way, per_example in (("fused", 0.4), ("floor", 0.4 / 1.15 + 1e-9), ("libraries", 1.6)):
        figures.add(way, 1024, turn(per_example * 1024, batch=1024))
    return figures


def run(size: str) -> Run:
    return Run(
        size, "python -m x", "2026-01-01", {"processor": "P"}, {"torch": "2"}, 7, 1.0, 2, (0, 1), {"it": ["f 9%"]}
    )


def test_a_turn_has_nearest_rank_percentiles_and_the_cost_of_an_example() -> None:
    found = Turn.of([1_000_000 * ms for ms in range(1, 201)], 4, cpu_s=0.8)
    assert (found.calls, found.p50_ms, found.p99_ms) == (200, 100.0, 198.0)
    assert found.ms_per_example == pytest.approx(201 * 100 / 800)
    assert found.cpu_ms_per_example == pytest.approx(1.0)
    assert Turn.of([5_000_000], 1, None).p99_ms == 5.0


def test_every_bar_of_the_paper_size_is_met_at_its_limit_and_missed_beyond() -> None:
    found = bars("paper", paper())
    assert len(found) == 7
    assert [bar.met for bar in found] == [True] * 7
    worse = {
        "at most 0.4": ("fused", 1024, turn(0.41 * 1024, batch=1024)),
        "at least 4 times": ("libraries", 1024, turn(1.5 * 1024, batch=1024)),
        "at most 3 ms": ("fused", 1, turn(3.01, p99=9.0)),
        "at least 50 times": ("libraries", 1, turn(149.0)),
        "at most 3 times p50": ("fused", 1, turn(3.0, p99=9.1)),
        "at most 15%": ("floor", 1024, turn(0.34 * 1024, batch=1024)),
        "at most 1 ms over": ("floor", 1, turn(1.99)),
    }
    for words, (way, batch, slower) in worse.items():
        figures = paper()
        figures.turns[way][batch] = [slower]
        assert [bar.met for bar in bars("paper", figures) if words in bar.what] == [False], words


def test_bars_of_ways_that_failed_are_not_measured() -> None:
    figures = paper()
    del figures.turns["libraries"], figures.turns["floor"]
    assert [bar.met for bar in bars("paper", figures)] == [True, None, True, None, True, None, None]
    assert [bar.met for bar in bars("paper", Figures())] == [None] * 7


def test_the_small_size_has_one_bar_and_others_none() -> None:
    figures = Figures()
    figures.add("fused", 1, turn(1.6))
    assert [(bar.limit, bar.met) for bar in bars("small", figures)] == [(1.5, False)]
    assert bars("another", figures) == []
    assert Bar(1, "x", 2.0, 2.0, least=True).met is True


def test_ratios_are_taken_within_a_turn() -> None:
    figures = Figures()
    for slow, fast in ((10.0, 1.0), (40.0, 2.0), (300.0, 10.0)):  # the machine grew slower, and more so for one
        figures.add("libraries", 64, turn(slow))
        figures.add("fused", 64, turn(fast))
    assert ratio(figures, "libraries", "fused", 64, "p50_ms") == 20.0
    assert figures.median("libraries", 64, "p50_ms") == 40.0
    assert figures.median("libraries", 64, "cpu_ms_per_example") is None
    assert ratio(figures, "libraries", "floor", 64, "p50_ms") is None


def test_a_way_that_failed_in_the_middle_is_compared_by_the_turns_it_had() -> None:
    figures = Figures()
    for ms in (10.0, 20.0):
        figures.add("libraries", 1, turn(ms))
    figures.add("fused", 1, turn(1.0))
    assert ratio(figures, "libraries", "fused", 1, "p50_ms") == 10.0


def test_the_report_shows_every_way_and_says_which_bars_were_missed() -> None:
    figures = paper()
    figures.turns["fused"][1] = [turn(3.5, p99=4.0, cpu=3.25)]
    figures.failed["merlin"] = "there is no Merlin Systems"
    figures.notes["floor"] = "in process"
    figures.steps["The floor"] = {1: {"features": 0.25}, 1024: {"features": 8.0, "late": 1234.0}}
    text = markdown(run("paper"), figures)
    assert "| batch 1: p50 at most 3 ms | 3.5 | **missed** |" in text
    assert "| batch 1024: at most 0.4 ms/example | 0.400 | met |" in text
    assert f"| {WAYS['fused']} | 3.5 | 4 | 3.5 | 3.25 | 42.9 | 10 |" in text
    assert f"| {WAYS['fastapi']} | not measured |" in text
    assert "there is no Merlin Systems" in text
    assert "| late |  | 1,234 |" in text
    assert "f 9%" in text
    assert all(f"## Batch {batch}\n" in text for batch in BATCHES)
    saved = document(run("paper"), figures)
    assert [bar["met"] for bar in saved["bars"]].count(False) == 3
    assert saved["turns"]["fused"][1][0]["p50_ms"] == 3.5


def test_every_way_is_asked_the_rows_that_the_load_tester_sends() -> None:
    values = np.arange(100, 150).reshape(-1, 1)
    sent = requests_of({"x": values}, 64, exponent=EXPONENT, seed=3)
    for rows, request in zip(draws(50, 64, 3), sent, strict=True):
        np.testing.assert_array_equal(values[rows], request["x"])
    assert not np.array_equal(draws(50, 64, 3)[0], draws(50, 64, 4)[0])


def test_a_few_rows_may_be_off_and_no_more() -> None:
    expected = np.zeros((1000, 2))
    answers = expected.copy()
    answers[:5, 1] = 0.3
    answers[7, 0] = 1e-6
    assert difference(answers, expected) == {"largest": 1e-6, "off": 0.005}
    answers[9, 0] = np.nan
    with pytest.raises(ValueError, match="0.60% of the golden rows"):
        difference(answers, expected)


@pytest.mark.slow
def test_the_first_baseline_answers_what_the_training_libraries_answered(
    tiny_stack: Path, tiny_repository: Path
) -> None:
    """In a process of its own, as it is measured; asked for one row, for many, and in every way it may choose."""
    script = f"""
import sys
sys.path.append({str(ROOT)!r})
from pathlib import Path
from benchmarks.baselines.libraries import Libraries
from benchmarks.baselines.rows import difference, golden
from tristage.export.stack_file import read_stack
libraries = Libraries(read_stack(Path({str(tiny_stack / "stack.yaml")!r})))
rows, expected = golden(Path({str(tiny_repository)!r}), libraries.outputs)
frame = libraries.complete(rows.to_pandas())
first = libraries.complete(rows.slice(0, 1).to_pandas())
for step, asked in libraries._asked.items():
    for way in asked.WAYS:
        libraries.ask_by({{step: way}})
        assert difference(libraries.answer(frame), expected)["off"] == 0
        assert difference(libraries.answer(first), expected[:1])["off"] == 0
chosen = libraries.tune(frame)
assert set(chosen) == {{"features", "keras"}}, chosen
assert difference(libraries.answer(frame), expected)["off"] == 0
assert set(libraries.spent) == {{"features", "trees", "grouped", "keras", "torch", "stage2", "score"}}
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
