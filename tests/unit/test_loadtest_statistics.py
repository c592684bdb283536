"""The arithmetic of a load test on numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest

from tristage.errors import InputError, TristageError
from tristage.loadtest import SCHEMA, Cell, ErrorCount, Latency, Report, StepShare, write_report
from tristage.loadtest._closed import Load, Outcome
from tristage.loadtest._run import cell_of
from tristage.loadtest._statistics import between, counters, models_of, shares
from tristage.loadtest._tables import tables

MS = 1_000_000


def triton(**models: tuple[int, int, int, int, int, int]) -> dict:
    """Triton's statistics: (count, success ms, queue ms, input ms, infer ms, output ms) by model."""
    return {
        "model_stats": [
            {
                "name": name,
                "version": "1",
                "inference_stats": {
                    "success": {"count": count, "ns": total * MS},
                    "queue": {"count": count, "ns": queue * MS},
                    "compute_input": {"count": count, "ns": taking * MS},
                    "compute_infer": {"count": count, "ns": infer * MS},
                    "compute_output": {"count": count, "ns": giving * MS},
                },
            }
            for name, (count, total, queue, taking, infer, giving) in models.items()
        ]
    }


BEFORE = counters(triton(whole=(10, 100, 0, 0, 0, 0), first=(10, 50, 5, 5, 35, 5), second=(10, 50, 10, 0, 40, 0)))
AFTER = counters(triton(whole=(20, 300, 0, 0, 0, 0), first=(20, 110, 15, 15, 65, 15), second=(20, 190, 30, 0, 160, 0)))


def outcome(*, errors: tuple[ErrorCount, ...] = (), interrupted: bool = False, requests: int = 10) -> Outcome:
    times = np.full(requests, 25 * MS, dtype=np.int64)
    return Outcome(times, elapsed_s=0.5, errors=errors, interrupted=interrupted, unavailable=None)


def load(batch: int = 4) -> Load:
    return Load("whole", ["y"], batch, [{}], concurrency=1, duration_s=None, count=10, warmup_s=0, timeout_s=1)


def test_percentiles_are_nearest_rank():
    hundred = Latency.of(np.random.default_rng(0).permutation(np.arange(1, 101)) * MS)
    assert hundred == Latency(mean_ms=50.5, p50_ms=50, p90_ms=90, p99_ms=99, max_ms=100)
    few = Latency.of(np.array([7, 1, 3], dtype=np.int64) * MS)
    assert few is not None
    assert (few.p50_ms, few.p90_ms, few.p99_ms, few.max_ms) == (3, 7, 7, 7)
    assert Latency.of(np.array([], dtype=np.int64)) is None


def test_shares_are_the_difference_of_two_readings_and_add_to_one():
    first, second = shares(["first", "second"], BEFORE, AFTER)
    # between the readings: 10 + 10 + 30 + 10 = 60 ms and 20 + 0 + 120 + 0 = 140 ms
    assert first == StepShare("first", 10, 1.0, 1.0, 3.0, 1.0, share=pytest.approx(0.3))
    assert second == StepShare("second", 10, 2.0, 0.0, 12.0, 0.0, share=pytest.approx(0.7))
    assert first.share + second.share == pytest.approx(1)
    assert first.total_ms == pytest.approx(6.0)


def test_shares_of_idle_steps_are_nothing():
    assert shares(["first", "second"], BEFORE, BEFORE) == ()
    assert shares(["first"], {}, {}) == ()


def test_versions_of_a_model_are_added_up():
    statistics = triton(first=(10, 50, 5, 5, 35, 5))
    statistics["model_stats"] += triton(first=(1, 2, 3, 4, 5, 6))["model_stats"]
    both = between({}, counters(statistics), "first")
    assert (both.count, both.total_ns) == (11, 52 * MS)
    assert both.phases_ns == (8 * MS, 9 * MS, 40 * MS, 11 * MS)


def test_the_models_of_an_ensemble():
    steps = [{"model_name": name, "model_version": -1} for name in ("b", "a", "b")]
    assert models_of({"name": "whole", "ensemble_scheduling": {"step": steps}}) == ("b", "a")
    assert models_of({"name": "alone", "backend": "python"}) == ("alone",)


def test_a_cell_is_wall_time_over_examples():
    cell = cell_of(load(batch=4), outcome(), ["first", "second"], BEFORE, AFTER)
    assert (cell.requests, cell.examples) == (10, 40)
    assert cell.ms_per_example == pytest.approx(500 / 40)
    assert cell.examples_per_s == pytest.approx(80)
    # the ensemble: 200 ms for 10 requests; the client saw 25 ms a request
    assert cell.server_ms == pytest.approx(20)
    assert cell.outside_ms == pytest.approx(5)
    assert sum(step.share for step in cell.steps) == pytest.approx(1)
    assert cell.complete
    assert cell.notes == ()


def test_errors_are_no_examples():
    failed = ErrorCount("InferenceFailed", 5, "no")
    cell = cell_of(load(batch=4), outcome(requests=5, errors=(failed,)), ["first"], BEFORE, AFTER)
    assert (cell.requests, cell.examples, cell.errors) == (5, 20, (failed,))
    assert cell.ms_per_example == pytest.approx(500 / 20)
    assert cell.notes == ()  # the server counted the failed ones

    nothing = cell_of(load(), outcome(requests=0, errors=(failed,)), ["first"], {}, {})
    assert (nothing.ms_per_example, nothing.examples_per_s, nothing.latency) == (None, 0.0, None)
    assert (nothing.server_ms, nothing.outside_ms, nothing.steps) == (None, None, ())


def test_other_clients_are_noticed():
    cell = cell_of(load(), outcome(requests=7), ["first"], BEFORE, AFTER)
    assert len(cell.notes) == 1
    assert "another client" in cell.notes[0]


@pytest.fixture
def report() -> Report:
    failed = ErrorCount("InferenceFailed", 5, "the [red] model said no")
    full = cell_of(load(), outcome(), ["first", "second"], BEFORE, AFTER)
    cut = cell_of(load(64), outcome(requests=0, errors=(failed,), interrupted=True), ["first"], {}, {})
    return Report(
        schema=SCHEMA,
        created="2026-01-02T03:04:05+00:00",
        version="1.2.3",
        machine={"python": "3.11"},
        url="http://127.0.0.1:1",
        stack="whole",
        mode="closed",
        duration_s=5.0,
        requests=None,
        warmup_s=1.0,
        rows="rows.parquet",
        row_count=7,
        ended="interrupted",
        message="interrupted in cell 2 of 2",
        cells=(full, cut),
    )


def test_json_comes_back_the_same(report: Report):
    text = report.to_json()
    assert Report.from_json(text) == report
    assert json.loads(text)["schema"] == "tristage.loadtest/1"
    assert isinstance(Report.from_json(text).cells[0], Cell)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: "{", "no load test report"),
        (lambda raw: "[1]", "no load test report"),
        (lambda raw: json.dumps({**raw, "schema": "tristage.loadtest/999"}), "tristage.loadtest/999"),
        (lambda raw: json.dumps({name: raw[name] for name in raw if name != "cells"}), "cells"),
        (lambda raw: json.dumps({name: raw[name] for name in raw if name != "url"}), "url"),
    ],
)
def test_what_is_no_report_is_refused(report: Report, change, says: str):
    with pytest.raises(InputError, match=says):
        Report.from_json(change(json.loads(report.to_json())))


def test_a_report_is_written_whole_or_not_at_all(report: Report, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_report(report, path)
    assert Report.from_json(path.read_text()) == report
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(TristageError, match="No space left"):
        write_report(dataclasses.replace(report, url="http://other"), path)
    assert Report.from_json(path.read_text()) == report
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_tables_fit_eighty_columns(report: Report):
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    for part in tables(report):
        console.print(part)
    text = console.export_text()
    heading = next(line for line in text.splitlines() if "ms/example" in line)
    assert heading.split()[:3] == ["batch", "conc.", "ms/example"]
    row = next(line for line in text.splitlines() if line.split()[:2] == ["4", "1"])
    assert row.split() == ["4", "1", "12.5", "25.0", "25.0", "25.0", "25.0", "80", "10", "0"]
    assert "30.0%" in text
    assert "70.0%" in text
    assert "64*" in text
    assert "the [red] model said no" in text
    assert "20.0 in the server, 5.00 outside" in text
    assert "…" not in text
