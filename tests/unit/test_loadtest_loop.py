"""The closed loop against a server in memory: what it counts, and how it ends."""

from __future__ import annotations

import _thread
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tristage.columns import SIGNATURE_PARAMETER, Column, Signature
from tristage.errors import InferenceFailed, InputError, ServerError, ServerUnavailable
from tristage.loadtest import Report, Tick, rows_from, run_loadtest
from tristage.loadtest._closed import Load, closed_loop
from tristage.loadtest._rows import requests_of

URL = "memory://here"
SIGNATURE = Signature("whole", 64, (Column("x", "float32"),), (Column("y", "float32"),))
ROWS = [{"x": float(number)} for number in range(10)]


class Server:
    """Answers in memory: `answer` is given each request's number (0-based) and may sleep or raise."""

    def __init__(self, answer: Callable[[int], None] = lambda number: None) -> None:
        self.answer = answer
        self.lock = threading.Lock()
        self.seen: list[Mapping[str, np.ndarray]] = []
        self.gone = False
        self.open = 0
        self.most_open = 0

    def connect(self) -> Connection:
        return Connection(self)


class Connection:
    url = URL

    def __init__(self, server: Server) -> None:
        self.server = server
        with server.lock:
            server.open += 1
            server.most_open = max(server.most_open, server.open)

    def ready(self, model: str, timeout: float) -> bool:
        self._there()
        return True

    def models(self, timeout: float) -> list[str]:
        self._there()
        return ["whole", "whole_first"]

    def config(self, model: str, timeout: float) -> dict[str, Any]:
        if model != "whole":
            return {"name": model}
        parameters = {SIGNATURE_PARAMETER: {"string_value": SIGNATURE.to_json()}}
        return {
            "name": model,
            "parameters": parameters,
            "ensemble_scheduling": {"step": [{"model_name": "whole_first"}]},
        }

    def statistics(self, model: str, timeout: float) -> dict[str, Any]:
        self._there()
        count = len(self.server.seen)
        spent = {phase: {"count": count, "ns": count} for phase in ("success", "queue", "compute_infer")}
        return {
            "model_stats": [
                {"name": name, "version": "1", "inference_stats": spent} for name in ("whole", "whole_first")
            ]
        }

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float
    ) -> dict[str, np.ndarray]:
        with self.server.lock:
            number = len(self.server.seen)
            self.server.seen.append(inputs)
        self._there()
        self.server.answer(number)
        return {"y": inputs["x"]}

    def close(self) -> None:
        with self.server.lock:
            self.server.open -= 1

    def _there(self) -> None:
        if self.server.gone:
            raise ServerUnavailable("it went away", url=URL)


def load(**changes: Any) -> Load:
    settings: dict[str, Any] = {
        "model": "whole",
        "outputs": ["y"],
        "batch": 2,
        "requests": requests_of({"x": np.arange(10, dtype=np.float32)[:, None]}, 2),
        "concurrency": 1,
        "duration_s": None,
        "count": 20,
        "warmup_s": 0,
        "timeout_s": 1.0,
    }
    return Load(**{**settings, **changes})


def run(server: Server, **changes: Any) -> Report:
    settings: dict[str, Any] = {"batches": (1, 4), "requests": 10, "warmup": 0, "timeout": 1.0}
    return run_loadtest(URL, rows=ROWS, connect=server.connect, **{**settings, **changes})


@pytest.mark.parametrize("concurrency", [1, 3])
def test_sends_as_many_requests_as_asked(concurrency: int):
    server = Server(lambda number: time.sleep(0.002))
    outcome = closed_loop(load(concurrency=concurrency), server.connect)
    assert len(server.seen) == len(outcome.nanoseconds) == 20
    assert server.most_open == concurrency
    assert server.open == 0
    assert outcome.nanoseconds.min() >= 2_000_000
    assert outcome.elapsed_s * 1e9 >= outcome.nanoseconds.sum() / concurrency
    assert (outcome.errors, outcome.interrupted, outcome.unavailable) == ((), False, None)


def test_concurrent_requests_are_on_their_way_together():
    meet = threading.Barrier(4, timeout=5)  # breaks, and fails the request, unless four requests meet
    server = Server(lambda number: meet.wait() and None)
    outcome = closed_loop(load(concurrency=4, count=4), server.connect)
    assert len(outcome.nanoseconds) == 4


def test_duration_ends_the_loop():
    server = Server(lambda number: time.sleep(0.005))
    outcome = closed_loop(load(count=None, duration_s=0.1), server.connect)
    assert 0.1 <= outcome.elapsed_s < 2
    assert 1 <= len(outcome.nanoseconds) <= 20


def test_a_request_longer_than_the_duration_still_counts():
    outcome = closed_loop(load(count=None, duration_s=0.01), Server(lambda number: time.sleep(0.05)).connect)
    assert len(outcome.nanoseconds) == 1
    assert outcome.elapsed_s >= 0.05


def test_warm_up_is_in_no_figure():
    server = Server(lambda number: time.sleep(0.8 if number == 0 else 0.001))
    before = []
    outcome = closed_loop(load(warmup_s=0.05), server.connect, started=lambda: before.append(len(server.seen)))
    assert before[0] >= 1
    assert len(server.seen) == before[0] + 20
    assert len(outcome.nanoseconds) == 20
    assert outcome.nanoseconds.max() < 700_000_000
    assert outcome.elapsed_s < 0.7


def test_failed_requests_are_counted_by_kind_and_the_loop_goes_on():
    def answer(number: int) -> None:
        if number % 4 == 1:
            raise InferenceFailed(f"no to {number}")
        if number == 6:
            raise ServerUnavailable("too late", url=URL)

    outcome = closed_loop(load(), Server(answer).connect)
    assert len(outcome.nanoseconds) == 14
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
    outcome = closed_loop(load(concurrency=concurrency, count=None, duration_s=60), server.connect)
    assert 10 <= len(outcome.nanoseconds) <= 100
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
    outcome = closed_loop(load(), server.connect)
    assert len(outcome.nanoseconds) == 5
    assert outcome.elapsed_s < 0.25


def test_a_fault_of_ours_is_not_hidden():
    def answer(number: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        closed_loop(load(concurrency=2), Server(answer).connect)


@pytest.mark.parametrize("warmup_s", [0, 60])
def test_ctrl_c_ends_the_loop_and_keeps_what_there_is(warmup_s: float):
    def answer(number: int) -> None:
        time.sleep(0.001)
        if number == 20:
            _thread.interrupt_main()

    outcome = closed_loop(load(count=None, duration_s=60, warmup_s=warmup_s), Server(answer).connect)
    assert outcome.interrupted
    assert outcome.elapsed_s < 30
    assert (len(outcome.nanoseconds) >= 20) == (warmup_s == 0)


def test_requests_differ_and_cover_all_rows():
    values = np.arange(10, dtype=np.float32)[:, None]
    for batch in (1, 3, 10, 25):
        requests = [request["x"] for request in requests_of({"x": values}, batch)]
        assert all(request.shape == (batch, 1) for request in requests)
        assert {float(value) for request in requests for value in request.ravel()} == set(range(10))
        assert len({request.tobytes() for request in requests}) == len(requests) == 10
    assert np.shares_memory(requests_of({"x": values}, 3)[0]["x"], values)
    assert len(requests_of({"x": np.zeros((100_000, 1))}, 1)) == 4096


def test_each_connection_begins_at_other_rows():
    server = Server(lambda number: time.sleep(0.01))
    closed_loop(load(concurrency=2, count=2), server.connect)
    assert {request["x"][0, 0] for request in server.seen} == {0.0, 5.0}


def test_a_run_measures_every_cell_in_order():
    server, ticks = Server(lambda number: time.sleep(0.001)), []
    report = run(server, concurrencies=(1, 2), watch=ticks.append)
    assert [(cell.batch, cell.concurrency) for cell in report.cells] == [(1, 1), (4, 1), (1, 2), (4, 2)]
    assert [cell.examples for cell in report.cells] == [10, 40, 10, 40]
    assert all(cell.complete and cell.steps[0].model == "whole_first" for cell in report.cells)
    assert all(cell.steps[0].count == 10 for cell in report.cells)
    assert (report.ended, report.message, report.requests, report.duration_s) == ("completed", "", 10, None)
    assert (report.stack, report.row_count, report.url) == ("whole", 10, URL)
    assert {tick.cell for tick in ticks} == {0, 1, 2, 3}
    assert all(isinstance(tick, Tick) and tick.cells == 4 for tick in ticks)
    assert server.open == 0
    assert Report.from_json(report.to_json()) == report


def test_a_run_keeps_what_it_measured_when_the_server_goes_away():
    server = Server()

    def answer(number: int) -> None:
        if number == 14:
            server.gone = True
            raise ServerUnavailable("it went away", url=URL)

    server.answer = answer
    report = run(server, batches=(1, 2, 4))
    assert [(cell.batch, cell.requests, cell.complete) for cell in report.cells] == [(1, 10, True), (2, 4, False)]
    assert [(error.kind, error.count) for error in report.cells[1].errors] == [("ServerUnavailable", 1)]
    assert report.ended == "unavailable"
    assert URL in report.message
    assert server.open == 0


def test_a_run_keeps_what_it_measured_on_ctrl_c():
    def answer(number: int) -> None:
        time.sleep(0.001)
        if number == 15:
            _thread.interrupt_main()

    report = run(Server(answer), batches=(1, 2, 4), requests=None, duration=60.0)
    assert [(cell.batch, cell.complete) for cell in report.cells] == [(1, False)]
    assert report.cells[0].requests >= 15
    assert report.ended == "interrupted"


def test_a_server_that_is_not_there_is_said_at_once():
    server = Server()
    server.gone = True
    with pytest.raises(ServerUnavailable):
        run(server)
    assert server.open == 0
    assert not server.seen


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batches": (1, 65)}, "exceeds the 64 rows"),
        ({"batches": (0,)}, "batch"),
        ({"batches": ()}, "batch"),
        ({"concurrencies": (0,)}, "concurrency"),
        ({"requests": 0}, "requests"),
        ({"duration": 0.0}, "duration"),
        ({"warmup": -1.0}, "warmup"),
        ({"timeout": float("nan")}, "timeout"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_sent(changes: dict[str, Any], says: str):
    server = Server()
    with pytest.raises(InputError, match=says):
        run(server, **changes)
    assert not server.seen
    assert server.open == 0


def test_a_model_that_is_no_stack_is_refused():
    server = Server()
    with pytest.raises(ServerError, match="whole_first"):
        run(server, stack="whole_first")
    assert server.open == 0


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(InputError):
        run_loadtest(URL, rows=[], connect=Server().connect)
    with pytest.raises(InputError, match="x"):
        run_loadtest(URL, rows=[{"z": 1.0}], connect=Server().connect)


def test_golden_rows_come_without_their_answers(tmp_path):
    pq.write_table(pa.table({"x": [1.0, 2.0], "expected.y": [0.1, 0.2]}), tmp_path / "golden.parquet")
    for path in (tmp_path, tmp_path / "golden.parquet"):
        table = rows_from(path)
        assert table.column_names == ["x"]
        assert table.num_rows == 2


def test_rows_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match=r"golden\.parquet"):
        rows_from(tmp_path)
    with pytest.raises(InputError, match=r"nowhere\.parquet"):
        rows_from(tmp_path / "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("not Parquet")
    with pytest.raises(InputError, match=r"text\.parquet"):
        rows_from(tmp_path / "text.parquet")


def test_the_command_line_stays_light():
    heavy = "{'grpc', 'pandas', 'pyarrow', 'tritonclient'} & set(sys.modules)"
    program = f"import sys, tristage.loadtest.cli; sys.exit(str({heavy} or '') or 0)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
