"""The arithmetic of a load test on numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from loadtest_reports import AFTER, BEFORE, GRAPH, MS, cell, outcome, triton

from tristage.errors import ServerUnavailable
from tristage.loadtest import ErrorCount, Histogram, Latency
from tristage.loadtest._cell import server_use
from tristage.loadtest._latency import bands, settled
from tristage.loadtest._loop import Samples
from tristage.loadtest._plan import Point
from tristage.loadtest._process import Usage
from tristage.loadtest._statistics import Graph, between, counters, graph_of, overlap, shares, when_quiet


def test_percentiles_are_nearest_rank():
    thousand = Latency.of(np.random.default_rng(0).permutation(np.arange(1, 1001)) * MS)
    assert thousand == Latency(mean_ms=500.5, p50_ms=500, p90_ms=900, p95_ms=950, p99_ms=990, p999_ms=999, max_ms=1000)
    few = Latency.of(np.array([7, 1, 3], dtype=np.int64) * MS)
    assert few is not None
    assert (few.p50_ms, few.p90_ms, few.p99_ms, few.max_ms) == (3, 7, 7, 7)
    assert Latency.of(np.array([], dtype=np.int64)) is None


def test_a_histogram_holds_every_request_in_its_bucket():
    random = np.random.default_rng(1)
    times = np.concatenate([random.lognormal(15, 1, 5000).astype(np.int64), [1, 10**12]])
    counts = Histogram.of(times)
    assert counts is not None
    assert sum(counts.counts) == 5002
    assert counts.counts[0] >= 1
    assert counts.counts[-1] >= 1
    edges = np.array(counts.edges())
    assert np.allclose(edges[1:] / edges[:-1], 1.05)
    found, _ = np.histogram(times / 1e6, edges)
    assert np.abs(found - counts.counts).sum() <= 4  # a time on an edge may round to either side
    assert Histogram.of(np.array([], dtype=np.int64)) is None


def test_bands_are_as_wide_as_the_figures_wander():
    random = np.random.default_rng(2)
    steady = random.lognormal(14, 0.1, 20_000).astype(np.int64)
    assert settled(bands(steady), 0.05)
    slower = (steady * np.linspace(1, 2, len(steady))).astype(np.int64)  # a leak
    assert bands(slower)["p50"] > 0.1
    assert not settled(bands(slower), 0.05)
    assert set(bands(steady[:500])) == {"p50", "p90"}  # too few for p99
    assert not settled(bands(steady[:500]), 0.5)
    assert bands(steady[:40]) == {}


def test_bands_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(3)
    truth = float(np.exp(14))
    held = 0
    for _ in range(300):
        times = random.lognormal(14, 0.3, 2000).astype(np.int64)
        held += abs(np.quantile(times, 0.5) - truth) <= bands(times)["p50"] * np.quantile(times, 0.5)
    assert 0.90 <= held / 300 <= 0.99


def test_shares_are_the_difference_of_two_readings_and_add_to_one():
    first, second = shares(GRAPH, BEFORE, AFTER)
    # between the readings: 10 + 10 + 30 + 10 = 60 ms and 20 + 0 + 120 + 0 = 140 ms
    assert (first.model, first.count, first.executions) == ("first", 10, 10)
    assert (first.queue_ms, first.compute_ms, first.total_ms) == (1.0, 5.0, 6.0)
    assert (second.queue_ms, second.compute_infer_ms, second.total_ms) == (2.0, 12.0, 14.0)
    assert (first.share, second.share) == (pytest.approx(0.3), pytest.approx(0.7))
    assert (first.beside, second.beside) == ((), ())
    assert first.critical
    assert second.critical


def test_shares_of_idle_steps_are_nothing():
    assert shares(GRAPH, BEFORE, BEFORE) == ()
    assert shares(GRAPH, {}, {}) == ()


def test_versions_of_a_model_are_added_up():
    statistics = triton(first=(10, 50, 5, 5, 35, 5))
    statistics["model_stats"] += triton(first=(1, 2, 3, 4, 5, 6))["model_stats"]
    both = between({}, counters(statistics), "first")
    assert (both.count, both.executions, both.total_ns) == (11, 11, 52 * MS)
    assert both.phases_ns == (8 * MS, 9 * MS, 40 * MS, 11 * MS)


def step(model: str, reads: list[str], writes: list[str]) -> dict[str, object]:
    return {
        "model_name": model,
        "input_map": {f"in_{name}": name for name in reads},
        "output_map": {f"out_{name}": name for name in writes},
    }


DIAMOND = {
    "name": "whole",
    "ensemble_scheduling": {
        "step": [
            step("features", ["raw"], ["x"]),
            step("trees", ["x"], ["t"]),
            step("net", ["x", "raw"], ["n"]),
            step("stack", ["t", "n"], ["y"]),
        ]
    },
}


def test_the_graph_of_an_ensemble_says_what_may_run_side_by_side():
    graph = graph_of(DIAMOND)
    assert graph == Graph(
        ("features", "trees", "net", "stack"),
        (frozenset(), frozenset({0}), frozenset({0}), frozenset({1, 2})),
    )
    spent = {name: (10, 0, 0, 0, took, 0) for name, took in zip(graph.models, (20, 90, 40, 10), strict=True)}
    after = counters(triton(whole=(10, 130, 0, 0, 0, 0), **spent))
    steps = shares(graph, {}, after)
    assert {step.model: step.beside for step in steps} == {
        "features": (),
        "trees": ("net",),
        "net": ("trees",),
        "stack": (),
    }
    assert [step.model for step in steps if step.critical] == ["features", "trees", "stack"]
    # 2 + 9 + 4 + 1 = 16 ms of steps in 13 ms
    assert overlap(graph, steps, 13.0) == pytest.approx(3.0)
    assert overlap(graph, steps, 17.0) == 0


def test_a_model_that_is_no_ensemble_is_its_only_step():
    assert graph_of({"name": "alone", "backend": "python"}) == Graph(("alone",), (frozenset(),))


def test_a_model_that_is_there_twice_is_one_row():
    twice = {"name": "w", "ensemble_scheduling": {"step": [step("a", ["raw"], ["x"]), step("a", ["x"], ["y"])]}}
    (only,) = shares(graph_of(twice), {}, counters(triton(a=(20, 40, 0, 0, 40, 0))))
    assert (only.model, only.count, only.beside, only.critical) == ("a", 20, (), True)


def test_counters_are_read_until_they_hold_what_was_answered():
    readings = [triton(whole=(count, count, 0, 0, 0, 0)) for count in (17, 17, 18, 20, 20, 20)]
    given = iter(readings)
    found = when_quiet(lambda: next(given), "whole", at_least=10, since=BEFORE)
    assert found["whole"].count == 20
    assert len(list(given)) == 1  # 17 twice was too few, 20 twice was enough


def test_counters_that_never_rest_are_read_once_more_and_taken():
    counts = iter(range(100_000))
    found = when_quiet(lambda: triton(whole=(next(counts), 0, 0, 0, 0, 0)), "whole")
    assert found["whole"].count >= 1


def test_counters_that_cannot_be_read_cost_a_table_only():
    def read() -> dict[str, object]:
        raise ServerUnavailable("gone", url="http://gone")

    assert when_quiet(read, "whole") == {}


def test_a_cell_is_wall_time_over_examples():
    found = cell()
    assert (found.requests, found.examples) == (10, 40)
    assert found.ms_per_example == pytest.approx(500 / 40)
    assert found.examples_per_s == pytest.approx(80)
    # the ensemble: 200 ms for 10 requests; the client saw 25 ms a request
    assert found.server_ms == pytest.approx(20)
    assert found.outside_ms == pytest.approx(5)
    assert found.client_cpu_ms == pytest.approx(1)
    assert found.overlap_ms == 0
    assert sum(step.share for step in found.steps) == pytest.approx(1)
    assert found.complete
    assert found.notes == ()


def test_errors_are_no_examples():
    failed = ErrorCount("InferenceFailed", 5, "no")
    found = cell(outcome(5, errors=(failed,)))
    assert (found.requests, found.examples, found.errors, found.failed) == (5, 20, (failed,), 5)
    assert found.ms_per_example == pytest.approx(500 / 20)
    assert found.notes == ()  # the server counted the failed ones

    nothing = cell(outcome(0, errors=(failed,)), before={}, after={})
    assert (nothing.ms_per_example, nothing.examples_per_s, nothing.latency) == (None, 0.0, None)
    assert (nothing.server_ms, nothing.outside_ms, nothing.overlap_ms, nothing.steps) == (None, None, None, ())


def test_the_time_outside_the_server_is_never_below_zero():
    late = counters(triton(whole=(20, 500, 0, 0, 0, 0), first=(20, 110, 15, 15, 65, 15)))
    found = cell(after=late)
    assert found.server_ms == pytest.approx(40)
    assert found.outside_ms == 0
    assert "its clock runs on" in found.notes[0]


def test_other_clients_are_noticed():
    assert "another client" in cell(outcome(7)).notes[0]


def test_answers_from_a_cache_are_noticed():
    statistics = triton(whole=(20, 300, 0, 0, 0, 0))
    statistics["model_stats"][0]["inference_stats"]["cache_hit"] = {"count": 4, "ns": 1}
    assert "4 answers came from Triton's response cache" in cell(after=counters(statistics)).notes[0]


def test_a_busy_load_tester_says_so():
    assert "limits" in cell(outcome(client_cpu_s=0.45)).notes[0]


def test_figures_that_did_not_settle_say_so():
    found = cell(band=0.05)
    assert found.settled is False
    assert "not settled within ±5%" in found.notes[0]
    assert cell(outcome(settled=True), band=0.05).notes == ()
    assert cell().settled is None


@pytest.mark.parametrize(("connections", "says"), [(1, "all 1 connections"), (64, "no core free")])
def test_requests_sent_late_say_why(connections: int, says: str):
    times = np.full(10, 50 * MS, dtype=np.int64)
    samples = Samples(times, np.arange(1, 11) * 50 * MS, np.full(10, 20 * MS))
    found = cell(outcome(samples=samples), point=Point(4, connections, 20.0), due_ns=np.zeros(10, np.int64))
    assert says in found.notes[0]
    assert found.late is not None
    assert found.late.p50_ms == 20


def test_a_rate_that_is_too_high_says_so():
    many = np.full(1000, 25 * MS, dtype=np.int64)
    samples = Samples(many, np.arange(1000) * MS, np.zeros(1000, np.int64))
    due = np.zeros(1000, np.int64)
    slow = cell(outcome(samples=samples, elapsed_s=2.0), point=Point(4, 64, 800.0), before={}, after={}, due_ns=due)
    assert "too many for it" in slow.notes[0]
    kept = cell(outcome(samples=samples, elapsed_s=2.0), point=Point(4, 64, 510.0), before={}, after={}, due_ns=due)
    assert kept.notes == ()


def test_what_the_server_used():
    use = server_use(
        Usage(10.0, 50), Usage(10.5, 10**8), peak=3 * 10**8, shared_once=2 * 10**8, elapsed_s=1.0, examples=100
    )
    assert use is not None
    assert (use.cpu_s, use.cpu_ms_per_example, use.cores) == (0.5, 5.0, 0.5)
    assert (use.peak_mb, use.shared_once_mb) == (300, 200)
    assert server_use(None, Usage(1, 1), peak=0, shared_once=None, elapsed_s=1, examples=1) is None
