"""The loops against a server in memory: what they send, when, what they count, and how they end."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from loadtest_memory import URL, Server, still_there, wire

from tristage.errors import InferenceFailed, ServerUnavailable
from tristage.loadtest._loop import OVERDUE, Load, Outcome, run_loop
from tristage.loadtest._plan import due_times
from tristage.loadtest._rows import requests_of


def load(**changes: Any) -> Load:
    settings: dict[str, Any] = {
        "batch": 2,
        "requests": requests_of({"x": np.arange(10, dtype=np.float32)[:, None]}, 2),
        "concurrency": 1,
        "duration_s": 1e6,
        "count": 20,
        "warmup_s": 0,
        "timeout_s": 1.0,
    }
    return Load(**{**settings, **changes})


def loop(load: Load, server: Server, **how: Any) -> Outcome:
    return run_loop(load, wire(server), still_there(server), **how)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_sends_as_many_requests_as_asked(concurrency: int):
    server = Server(lambda number: time.sleep(0.002))
    outcome = loop(load(concurrency=concurrency), server)
    assert len(server.seen) == len(outcome.samples.took_ns) == 20
    assert server.most_open == concurrency
    assert server.open == 0
    assert outcome.samples.took_ns.min() >= 2_000_000
    assert outcome.elapsed_s * 1e9 >= outcome.samples.took_ns.sum() / concurrency
    assert (outcome.errors, outcome.interrupted, outcome.unavailable) == ((), False, None)


def test_concurrent_requests_are_on_their_way_together():
    meet = threading.Barrier(4, timeout=5)  # breaks, and fails the request, unless four requests meet
    server = Server(lambda number: meet.wait() and None)
    outcome = loop(load(concurrency=4, count=4), server)
    assert len(outcome.samples.took_ns) == 4


def test_duration_ends_the_loop():
    server = Server(lambda number: time.sleep(0.005))
    outcome = loop(load(count=None, duration_s=0.1), server)
    assert 0.1 <= outcome.elapsed_s < 2
    assert 1 <= len(outcome.samples.took_ns) <= 20


def test_a_request_longer_than_the_duration_still_counts():
    outcome = loop(load(count=None, duration_s=0.01), Server(lambda number: time.sleep(0.05)))
    assert len(outcome.samples.took_ns) == 1
    assert outcome.elapsed_s >= 0.05


def test_warm_up_is_in_no_figure():
    server = Server(lambda number: time.sleep(0.8 if number == 0 else 0.001))
    before = []
    outcome = loop(load(warmup_s=0.05), server, started=lambda: before.append(len(server.seen)))
    assert before[0] >= 1
    assert len(server.seen) == before[0] + 20
    assert len(outcome.samples.took_ns) == 20
    assert outcome.samples.took_ns.max() < 700_000_000
    assert outcome.elapsed_s < 0.7


def test_failed_requests_are_counted_by_kind_and_the_loop_goes_on():
    def answer(number: int) -> None:
        if number % 4 == 1:
            raise InferenceFailed(f"no to {number}")
        if number == 6:
            raise ServerUnavailable("too late", url=URL)

    outcome = loop(load(), Server(answer))
    assert len(outcome.samples.took_ns) == 14
    assert [(error.kind, error.count, error.message) for error in outcome.errors] == [
        ("InferenceFailed", 5, "no to 1"),
        ("ServerUnavailable", 1, "too late"),
    ]
    assert outcome.unavailable is None  # it was asked, and is still there


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_server_that_goes_away_ends_the_loop(concurrency: int):
    server = Server()

    def answer(number: int) -> None:
        if number == 12:
            server.gone = True
            raise ServerUnavailable("it went away", url=URL)
        time.sleep(0.001)

    server.answer = answer
    outcome = loop(load(concurrency=concurrency, count=None, duration_s=60), server)
    assert 10 <= len(outcome.samples.took_ns) <= 100
    assert outcome.unavailable is not None
    assert outcome.errors[0].kind == "ServerUnavailable"
    assert 1 <= outcome.errors[0].count <= concurrency
    assert outcome.elapsed_s < 30
    assert server.open == 0


def test_time_lost_on_a_dead_server_is_no_cost_of_an_example():
    server = Server()

    def answer(number: int) -> None:
        if number == 5:
            server.gone = True
            time.sleep(0.3)  # as a time limit runs out
            raise ServerUnavailable("too late", url=URL)

    server.answer = answer
    outcome = loop(load(), server)
    assert len(outcome.samples.took_ns) == 5
    assert outcome.elapsed_s < 0.25


def test_a_fault_of_ours_is_not_hidden():
    def answer(number: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop(load(concurrency=2), Server(answer))


@pytest.mark.parametrize("warmup_s", [0, 60])
def test_ctrl_c_ends_the_loop_and_keeps_what_there_is(warmup_s: float):
    def answer(number: int) -> None:
        time.sleep(0.001)
        if number == 20:
            _thread.interrupt_main()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started deaf to it
    try:
        outcome = loop(load(count=None, duration_s=60, warmup_s=warmup_s), Server(answer))
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.interrupted
    assert outcome.elapsed_s < 30
    assert (len(outcome.samples.took_ns) >= 20) == (warmup_s == 0)


def test_each_connection_begins_at_other_rows():
    server = Server(lambda number: time.sleep(0.01))
    loop(load(concurrency=2, count=2), server)
    assert {request["x"][0, 0] for request in server.seen} == {0.0, 5.0}


def test_the_open_loop_sends_what_is_due_and_when():
    server = Server()
    due = due_times(200, "poisson", seconds=0.4, seed=3)
    outcome = loop(load(due_ns=due, count=None, duration_s=0.4, concurrency=4), server)
    assert len(server.seen) == len(outcome.samples.took_ns) == len(due)
    assert outcome.elapsed_s * 1e9 >= due[-1]
    assert outcome.samples.late_ns.min() >= 0  # never before it was due
    assert (outcome.samples.took_ns >= outcome.samples.late_ns).all()
    assert (np.diff(outcome.samples.ended_ns) >= 0).all()


def test_a_stalled_server_cannot_hide_from_the_open_loop():
    server = Server(lambda number: time.sleep(0.5 if number == 5 else 0))
    due = due_times(100, "constant", seconds=0.4)
    waited = loop(load(due_ns=due, count=None, duration_s=0.4), server).samples.took_ns
    # requests 5 to 34 were due in the first 300 ms of the stall, on the one connection
    assert (waited >= 190_000_000).sum() >= 30

    server = Server(lambda number: time.sleep(0.5 if number == 5 else 0))
    hidden = loop(load(count=40), server).samples.took_ns
    assert (hidden >= 490_000_000).sum() == 1  # a closed loop has sent nothing meanwhile


def test_a_request_that_no_connection_could_send_in_time_is_an_error():
    server = Server(lambda number: time.sleep(0.4 if number == 0 else 0))
    due = due_times(50, "constant", seconds=0.4)
    outcome = loop(load(due_ns=due, count=None, duration_s=0.4, timeout_s=0.1), server)
    (error,) = outcome.errors
    assert error.kind == OVERDUE
    assert error.count >= 14  # those due in the first 300 ms
    assert error.count + len(outcome.samples.took_ns) == len(due)


def test_a_loop_that_is_hopeless_is_given_up():
    server = Server(lambda number: time.sleep(0.02))
    due = due_times(1000, "constant", seconds=60)
    outcome = loop(load(due_ns=due, count=None, duration_s=60, limit_s=0.015, misses=7), server)
    assert outcome.gave_up
    assert len(server.seen) == len(outcome.samples.took_ns) == 8
    kept = loop(load(due_ns=due[:8], count=None, duration_s=60, limit_s=0.015, misses=8), server)
    assert not kept.gave_up
    assert len(kept.samples.took_ns) == 8


@pytest.mark.parametrize("open_loop", [False, True])
def test_a_loop_ends_when_its_figures_have_settled(open_loop: bool):
    seen = []
    server = Server(lambda number: time.sleep(0.001))
    due = due_times(500, "poisson", seconds=60) if open_loop else None

    def enough(samples):
        seen.append(len(samples.took_ns))
        return len(samples.took_ns) >= 150

    outcome = loop(load(due_ns=due, count=None, duration_s=60, concurrency=2), server, settled=enough)
    assert outcome.settled
    assert outcome.elapsed_s < 30
    assert 150 <= seen[-1] <= len(outcome.samples.took_ns) == len(server.seen)


def test_an_answer_without_all_rows_is_no_answer():
    server = Server()
    with pytest.raises(InferenceFailed, match="2 rows"):
        loop(load(batch=3), server)
