"""Two reports side by side, on numbers worked out by hand."""

from __future__ import annotations

import io
import json

import pytest
from loadtest_reports import BEFORE, cell, outcome, triton
from loadtest_reports import report as report_of

from tristage.errors import InputError
from tristage.loadtest import ErrorCount, Report
from tristage.loadtest._compare import Line, comparison, comparison_json, comparison_markdown
from tristage.loadtest._compare_tables import comparison_tables
from tristage.loadtest._plan import Point
from tristage.loadtest._statistics import Graph, counters


def pair_of_reports() -> tuple[Report, Report]:
    """B does in 0.1 s what A does in 0.5: the step `second` is five times faster, `first` is gone, `third` is new."""
    slow = report_of(cell(), cell(point=Point(8, 2)))
    graph = Graph(("whole_second", "whole_third"), (frozenset(), frozenset()))
    after = counters(
        triton(whole=(10, 60, 0, 0, 0, 0), whole_second=(10, 30, 0, 0, 24, 0), whole_third=(10, 30, 0, 0, 30, 0))
    )
    fast = cell(outcome(elapsed_s=0.1), graph=graph, before={"whole": BEFORE["first"].__class__()}, after=after)
    return slow, report_of(fast, protocol="grpc", stack="whole", row_count=9)


def test_steps_are_seconds_of_computing_for_as_many_examples():
    a, b = pair_of_reports()
    found = comparison(a, b, prices=(0.36, 3.6), examples=1_000_000)
    (pair,) = found.pairs
    assert pair.at == "batch 4, concurrency 1"
    # A: 40 examples; first computes 5 ms a request, second 12, ten requests each
    assert pair.steps == (
        Line("first", pytest.approx(1250), None),
        Line("second", pytest.approx(3000), pytest.approx(600)),
        Line("third", None, pytest.approx(750)),
    )
    assert [line.times for line in pair.steps] == [None, pytest.approx(5), None]
    assert pair.all == Line("all", pytest.approx(12_500), pytest.approx(2500))
    assert pair.rest == Line("the rest", pytest.approx(8250), pytest.approx(1150))
    assert pair.figures[0] == Line("ms/example", pytest.approx(12.5), pytest.approx(2.5))
    # 12,500 s at 0.36 an hour, and 2,500 s at 3.6
    assert pair.cost == Line("cost", pytest.approx(1.25), pytest.approx(2.5))
    assert pair.cost.times == pytest.approx(0.5)


def test_one_price_is_for_both_and_none_for_neither():
    a, b = pair_of_reports()
    (pair,) = comparison(a, b, prices=(3.6,)).pairs
    assert pair.cost is not None
    assert pair.cost.times == pair.all.times == pytest.approx(5)
    assert comparison(a, b).pairs[0].cost is None
    with pytest.raises(InputError, match="--price"):
        comparison(a, b, prices=(1, 2, 3))


def test_what_differs_is_said():
    a, b = pair_of_reports()
    failed = report_of(cell(outcome(errors=(ErrorCount("InferenceFailed", 3, "no"),))))
    assert comparison(a, b).notes == (
        "protocol: A http, B grpc",
        "rows: A 7 from rows.parquet, B 9 from rows.parquet",
        "only A measured batch 8, concurrency 2",
    )
    assert "B, batch 4, concurrency 1: 3 requests failed" in comparison(a, failed).notes


def test_steps_that_run_side_by_side_leave_no_rest():
    graph = Graph(("one", "two"), (frozenset(), frozenset()))
    after = counters(triton(whole=(10, 300, 0, 0, 0, 0), one=(10, 300, 0, 0, 300, 0), two=(10, 300, 0, 0, 300, 0)))
    both = report_of(cell(graph=graph, before={"whole": BEFORE["first"].__class__()}, after=after))
    found = comparison(both, both)
    assert found.pairs[0].rest == Line("the rest", None, None)
    assert "side by side" in found.notes[0]


def test_reports_with_nothing_in_common_are_refused():
    with pytest.raises(InputError, match="batch 8, concurrency 2"):
        comparison(report_of(cell()), report_of(cell(point=Point(8, 2))))


def test_a_comparison_is_a_table_json_and_markdown():
    from rich.console import Console

    found = comparison(*pair_of_reports(), names=("slow.json", "fast.json"), prices=(0.36, 3.6))
    console = Console(width=80, record=True, file=io.StringIO())
    for part in comparison_tables(found):
        console.print(part)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["second", "3,000", "600", "5.00"] in lines
    assert ["first", "1,250", "-", "-"] in lines
    assert ["all", "12,500", "2,500", "5.00"] in lines
    assert ["cost", "of", "these", "examples", "1.25", "2.50", "0.500"] in lines
    raw = json.loads(comparison_json(found))
    assert raw["names"] == ["slow.json", "fast.json"]
    assert raw["pairs"][0]["steps"][1]["times"] == pytest.approx(5)
    assert "| **all** | **12,500** | **2,500** | **5.00** |" in comparison_markdown(found)
