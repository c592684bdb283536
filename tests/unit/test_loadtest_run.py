"""A run against a server in memory: every cell in order, nothing lost when it is cut short, bad settings refused."""

from __future__ import annotations

import _thread
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loadtest_memory import URL, Server, run

from tristage.errors import InputError, ServerError, ServerUnavailable
from tristage.loadtest import Report, Tick, rows_from, run_loadtest
from tristage.loadtest._rows import requests_of


def test_requests_differ_and_cover_all_rows():
    values = np.arange(10, dtype=np.float32)[:, None]
    for batch in (1, 3, 10, 25):
        requests = [request["x"] for request in requests_of({"x": values}, batch)]
        assert all(request.shape == (batch, 1) for request in requests)
        assert {float(value) for request in requests for value in request.ravel()} == set(range(10))
        assert len({request.tobytes() for request in requests}) == len(requests) == 10
    assert np.shares_memory(requests_of({"x": values}, 3)[0]["x"], values)
    assert len(requests_of({"x": np.zeros((100_000, 1))}, 1)) == 4096


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


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, also where tests are started in the background, whose shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
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
        ({"rates": (0.0,)}, "rate"),
        ({"rates": (1e9,)}, "at most 100,000"),
        ({"rates": (1.0,), "concurrencies": (1, 2)}, "vary the rate"),
        ({"rates": (1.0,), "max_p99_ms": 5.0}, "looks for the rate itself"),
        ({"max_p99_ms": 5.0}, "drop requests"),
        ({"max_p99_ms": -5.0, "requests": None}, "max_p99 is -5 ms"),
        ({"power_law": 0.0}, "power_law"),
        ({"seed": -1}, "seed"),
        ({"band": 0.0}, "band"),
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
