"""The load tester's open loop, its look at the server's processes, its defaults and files, against a real Triton."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loadtest_triton import ROWS, write_repository

from tristage.errors import InputError
from tristage.loadtest import Report, Tick, read_report, run_loadtest
from tristage.serving import Server, serve


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("loadtest") / "repository")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    core = min(os.sched_getaffinity(0))
    with serve(repository, cores=[core], http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


@pytest.mark.parametrize("arrivals", ["poisson", "constant"])
def test_an_open_loop_keeps_its_own_time(server: Server, arrivals: str):
    report = run_loadtest(
        server.grpc_url, rows=ROWS, batches=(1, 4), rates=(20, 40.5), arrivals=arrivals, duration=0.6, warmup=0.1
    )
    assert (report.mode, report.arrivals, report.duration_s, report.band) == ("open", arrivals, 0.6, None)
    assert [(cell.batch, cell.rate, cell.concurrency) for cell in report.cells] == [
        *((1, 20, 64), (4, 20, 64), (1, 40.5, 64), (4, 40.5, 64))
    ]
    for cell in report.cells:
        assert cell.errors == ()
        assert cell.late is not None
        assert cell.latency is not None
        assert cell.latency.p50_ms >= 5
        assert cell.steps[1].count == cell.requests
        if arrivals == "constant":
            assert cell.requests == (12 if cell.rate == 20 else 25)
    assert Report.from_json(report.to_json()) == report


def test_a_stall_of_the_server_is_in_the_percentiles(server: Server):
    stalled = []

    def watch(tick: Tick) -> None:
        if tick.requests >= 10 and not stalled:
            stalled.append(tick)
            os.kill(server.pid, signal.SIGSTOP)
            threading.Timer(1.0, os.kill, (server.pid, signal.SIGCONT)).start()

    try:
        report = run_loadtest(
            server.http_url,
            rows=ROWS,
            batches=(1,),
            rates=(50,),
            arrivals="constant",
            duration=3.0,
            warmup=0,
            watch=watch,
        )
    finally:
        os.kill(server.pid, signal.SIGCONT)
    (cell,) = report.cells
    assert cell.requests == 150
    assert cell.latency is not None
    # 35 of the 150 were due in the first 700 ms of the stall
    assert cell.latency.p90_ms >= 300


def test_the_search_keeps_its_word(server: Server):
    report = run_loadtest(server.grpc_url, rows=ROWS, batches=(1,), max_p99_ms=100, duration=0.5, warmup=0.05)
    (found,) = report.found
    assert (found.batch, found.max_p99_ms) == (1, 100)
    assert report.cells[0].rate is None  # where it began
    tried = {cell.rate: cell for cell in report.cells[1:]}
    if found.rate is not None:  # else the machine was too busy to hold any
        assert found.cell is not None
        held = report.cells[found.cell]
        assert held.rate == found.rate
        assert held.latency is not None
        assert held.latency.p99_ms <= 100
    assert found.missed in tried  # a request takes 7 ms: somewhere there is an end
    assert found.missed is not None
    assert found.missed > (found.rate or 0)
    assert max(cell.rate or 0 for cell in report.cells) < 10_000


def test_a_limit_below_what_a_request_takes_is_held_by_no_rate(server: Server):
    report = run_loadtest(server.grpc_url, rows=ROWS, batches=(1,), max_p99_ms=1, duration=0.1, warmup=0)
    (found,) = report.found
    assert (found.rate, found.cell, found.missed) == (None, None, None)
    assert len(report.cells) == 1


def test_what_the_servers_processes_cost(server: Server):
    report = run_loadtest(server.http_url, rows=ROWS, batches=(1,), requests=100, warmup=0.1)
    (cell,) = report.cells
    assert f"tritonserver {server.pid}" in report.server
    assert cell.server is not None
    # a request computes 2 ms; the kernel counts in ticks of 10 ms, for each of three processes
    assert cell.server.cpu_s >= 0.2 - 0.06
    assert cell.server.cpu_ms_per_example == pytest.approx(cell.server.cpu_s * 1e3 / 100)
    assert cell.server.cores <= 1.1  # it is pinned to one, and each tick may be 10 ms off
    assert cell.server.shared_once_mb is not None
    assert cell.server.shared_once_mb <= cell.server.peak_mb
    if len(os.sched_getaffinity(0)) > 1:  # the load tester kept off the server's core
        assert str(min(os.sched_getaffinity(0))) not in report.machine["cores"].split(",")
    given = run_loadtest(server.http_url, rows=ROWS, batches=(1,), requests=3, warmup=0, server_pid=os.getpid())
    assert str(os.getpid()) in given.server


def test_percentiles_settle(server: Server):
    report = run_loadtest(server.grpc_url, rows=ROWS, batches=(1,), band=1000.0, longest=120, warmup=0)
    (cell,) = report.cells
    assert cell.settled
    assert set(cell.bands) == {"p50", "p90", "p99"}
    assert cell.requests >= 1000  # fewer say nothing of p99
    short = run_loadtest(server.grpc_url, rows=ROWS, batches=(1,), band=1e-9, longest=0.3, warmup=0)
    assert short.cells[0].settled is False
    assert "not settled" in short.cells[0].notes[0]


def test_nothing_but_a_url_is_needed(cli: Callable[..., Any], server: Server, repository: Path, tmp_path: Path):
    files = [tmp_path / f"report.{suffix}" for suffix in ("json", "csv", "md", "html")]
    done = cli(
        *("loadtest", "--url", server.grpc_url, "--requests", 5, "--warmup", 0, "--batch", "1,4", "--power-law", 1),
        *(word for file in files for word in ("-o", file)),
    )
    assert done.code == 0, done.err
    assert "ms/example" in done.out
    report = read_report(files[0])
    assert report.rows == str(repository)  # the server was asked where its repository is
    assert report.draw == "power law, exponent 1"
    assert files[1].read_text().count("\n") == 3
    assert "## Steps, batch 4" in files[2].read_text()
    assert files[3].read_text().startswith("<!doctype html>")


def test_without_a_server_the_server_is_what_is_missing(cli: Callable[..., Any], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no rows here either
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    done = cli("loadtest", "--url", url)
    assert done.code == 3
    assert "tristage serve" in done.err.replace("\n", " ")
    assert "no rows" not in done.err


def test_two_reports_are_compared(cli: Callable[..., Any], server: Server, repository: Path, tmp_path: Path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    for url, path in ((server.http_url, a), (server.grpc_url, b)):
        done = cli("loadtest", "--url", url, "--requests", 5, "--warmup", 0, "--batch", "1", "-o", path)
        assert done.code == 0, done.err
    done = cli("compare", a, b, "--price", "0.36,3.675", "-o", tmp_path / "c.md")
    assert done.code == 0, done.err
    assert "protocol: A http, B grpc" in done.out
    assert "length" in done.out
    assert "cost of 1,000,000 examples" in (tmp_path / "c.md").read_text()
    bad = cli("compare", a, tmp_path / "nowhere.json")
    assert bad.code == 2
    assert "nowhere.json" in bad.err.replace("\n", "")
    assert "Traceback" not in bad.err


def test_shared_memory_goes_over_grpc(server: Server):
    with pytest.raises(InputError, match="grpc"):
        run_loadtest(server.http_url, rows=ROWS, batches=(1,), protocol="grpc+shm", requests=1)
