"""The load tester against a real Triton with a small ensemble of two steps written by hand."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from loadtest_triton import ROWS, answered, write_repository
from typer.testing import CliRunner

from tristage.errors import InputError, ServerUnavailable
from tristage.loadtest import Report, Tick, rows_from, run_loadtest
from tristage.loadtest.cli import loadtest
from tristage.serving import Server, serve


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("loadtest") / "repository")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with serve(repository, http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


@pytest.fixture
def doomed(repository: Path) -> Iterator[Server]:
    """A server of the test's own, to be killed."""
    with serve(repository, http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


def url_of(server: Server, protocol: str) -> str:
    return server.http_url if protocol == "http" else server.grpc_url


def free_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def invoke(*arguments: object) -> object:
    app = typer.Typer()
    app.command()(loadtest)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from tristage.cli import main; main()", "loadtest", *map(str, arguments)]


@pytest.mark.parametrize("protocol", ["http", "grpc", "grpc+shm"])
def test_a_run_over_every_protocol(server: Server, repository: Path, protocol: str):
    left_over = set(Path("/dev/shm").glob("tristage-loadtest-*"))
    report = run_loadtest(
        url_of(server, protocol).partition("://")[2],
        protocol=protocol,
        rows=rows_from(repository),
        batches=(1, 16),
        concurrencies=(1, 2),
        requests=12,
        warmup=0.05,
    )
    assert report.ended == "completed"
    assert report.stack == "tiny"
    assert report.protocol == protocol
    assert report.row_count == len(ROWS)
    assert set(Path("/dev/shm").glob("tristage-loadtest-*")) <= left_over
    assert [(cell.batch, cell.concurrency) for cell in report.cells] == [(1, 1), (16, 1), (1, 2), (16, 2)]
    for cell in report.cells:
        assert (cell.requests, cell.examples, cell.errors) == (12, 12 * cell.batch, ())
        assert not any("another client" in note for note in cell.notes)
        assert cell.latency is not None
        assert cell.latency.p50_ms >= 5
        assert cell.ms_per_example == pytest.approx(cell.elapsed_s * 1e3 / cell.examples)
        assert cell.ms_per_example * cell.batch >= 5
        assert [(step.model, step.count) for step in cell.steps] == [("tiny_length", 12), ("tiny_add", 12)]
        assert sum(step.share for step in cell.steps) == pytest.approx(1)
        assert cell.steps[1].compute_infer_ms >= 5
        assert cell.steps[1].share > cell.steps[0].share
        # no upper bound: the server's clock runs on after the answer has left
        assert cell.server_ms is not None
        assert cell.server_ms >= 5
        assert cell.outside_ms is not None
        assert cell.outside_ms >= 0
        assert cell.server is not None
        assert cell.server.peak_mb > 20
    alone, together = report.cells[0], report.cells[2]
    # two connections to one instance: the second request waits while the first one is computed
    assert together.steps[1].queue_ms > alone.steps[1].queue_ms + 1
    assert Report.from_json(report.to_json()) == report


def test_a_run_by_the_clock(server: Server):
    report = run_loadtest(server.http_url, rows=ROWS, batches=(4,), duration=0.4, warmup=0)
    cell = report.cells[0]
    assert 0.4 <= cell.elapsed_s < 5
    assert 1 <= cell.requests <= 80  # 5 ms each
    assert cell.requests == cell.steps[0].count


def test_refused_requests_are_errors_and_no_examples(server: Server):
    rows = [{"x": -1.0 if number % 4 == 0 else 1.0, "word": "w"} for number in range(40)]
    report = run_loadtest(server.grpc_url, rows=rows, batches=(1,), requests=40, warmup=0)
    (cell,) = report.cells
    (error,) = cell.errors
    assert (error.kind, error.count) == ("InferenceFailed", 10)
    assert "below zero" in error.message
    assert (cell.requests, cell.examples) == (30, 30)
    assert report.ended == "completed"


def test_another_client_is_noticed(server: Server):
    calls = []

    def watch(tick: Tick) -> None:
        if tick.elapsed_s and not calls:  # once, in the middle of the run
            calls.append(run_loadtest(server.http_url, rows=ROWS, batches=(1,), requests=5, warmup=0))

    report = run_loadtest(server.grpc_url, rows=ROWS, batches=(1,), duration=0.5, warmup=0, watch=watch)
    assert "another client" in report.cells[0].notes[0]


def test_a_batch_above_the_maximum(server: Server):
    with pytest.raises(InputError, match="256"):
        run_loadtest(server.http_url, rows=ROWS, batches=(1, 257))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_nothing_there(protocol: str):
    url = free_url().replace("http", protocol)
    begun = time.monotonic()
    with pytest.raises(ServerUnavailable, match="127.0.0.1"):
        run_loadtest(url, rows=ROWS)
    assert time.monotonic() - begun < 8


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_killed_in_mid_run(doomed: Server, protocol: str):
    begun = time.monotonic()

    def watch(tick: Tick) -> None:
        if tick.cell == 1 and tick.requests >= 5:
            os.kill(doomed.pid, signal.SIGKILL)

    report = run_loadtest(
        url_of(doomed, protocol), rows=ROWS, batches=(1, 2, 4), duration=1.0, warmup=0, timeout=5, watch=watch
    )
    assert time.monotonic() - begun < 30
    assert report.ended == "unavailable"
    assert "went away" in report.message
    assert [(cell.batch, cell.complete) for cell in report.cells] == [(1, True), (2, False)]
    whole, cut = report.cells
    assert whole.errors == ()
    assert whole.steps
    assert cut.requests >= 5
    assert [error.kind for error in cut.errors] == ["ServerUnavailable"]
    assert cut.steps == ()
    assert Report.from_json(report.to_json()) == report


def test_a_server_that_hangs_in_mid_run(doomed: Server):
    begun = time.monotonic()

    def watch(tick: Tick) -> None:
        if tick.requests >= 5:
            os.kill(doomed.pid, signal.SIGSTOP)

    try:
        report = run_loadtest(doomed.http_url, rows=ROWS, batches=(1, 2), duration=60, warmup=0, timeout=1, watch=watch)
    finally:
        os.kill(doomed.pid, signal.SIGCONT)
    assert time.monotonic() - begun < 20
    assert report.ended == "unavailable"
    assert [(cell.batch, cell.complete) for cell in report.cells] == [(1, False)]
    assert report.cells[0].requests >= 5
    assert report.cells[0].latency is not None
    assert report.cells[0].latency.max_ms < 1000


def test_the_command_prints_tables(server: Server, repository: Path, tmp_path: Path):
    path = tmp_path / "report.json"
    result = invoke(
        *("--url", server.http_url, "--rows", repository, "--batch", "1,8", "--requests", 5, "--warmup", 0, "-o", path)
    )
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["batch", "conc.", "ms/example"] in [line[:3] for line in lines]
    assert [line[:2] for line in lines if line[2:4] == ["5", "0"]] == [["1", "1"], ["8", "1"]]
    assert sum(line[:1] == ["tiny_add"] for line in lines) == 2
    report = Report.from_json(path.read_text())
    assert [cell.batch for cell in report.cells] == [1, 8]
    assert report.rows == str(repository)


def test_the_command_prints_json_and_nothing_else(server: Server, repository: Path):
    address = server.grpc_url.removeprefix("grpc://")
    result = invoke(
        *("--url", address, "--protocol", "grpc", "--rows", repository / "golden.parquet", "--batch", "2"),
        *("--requests", 3, "--warmup", 0, "--json"),
    )
    assert result.exit_code == 0, result.output
    report = Report.from_json(result.stdout)
    assert report.url == server.grpc_url
    assert report.cells[0].examples == 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--batch", "1,many"), "--batch"),
        (("--batch", "257"), "256"),
        (("--rows", "nowhere.parquet"), "nowhere.parquet"),
        (("-o", "report.txt"), "report.txt"),
        (("-o", "nowhere/report.json"), "nowhere"),
        (("--url", "ftp://here"), "ftp://here"),
    ],
)
def test_the_command_refuses(server: Server, repository: Path, arguments: tuple[str, ...], says: str):
    result = invoke("--url", server.http_url, "--rows", repository, *arguments)
    assert isinstance(result.exception, InputError)
    assert says in str(result.exception)


def test_the_program_says_that_nothing_is_there(repository: Path):
    url = free_url()
    run = subprocess.run(command("--url", url, "--rows", repository), capture_output=True, text=True, timeout=60)
    assert run.returncode == 3
    assert "error:" in run.stderr
    assert url in run.stderr.replace("\n", "")
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_the_program_loses_nothing_when_the_server_is_killed(doomed: Server, repository: Path, tmp_path: Path):
    path = tmp_path / "report.json"
    arguments = ("--url", doomed.grpc_url, "--rows", repository, "--batch", "1,2", "--warmup", 0, "--duration", 3)
    with subprocess.Popen(
        command(*arguments, "-o", path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        await_requests(doomed, 20)
        os.kill(doomed.pid, signal.SIGKILL)
        stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 3
    assert "1*" in stdout
    assert "ServerUnavailable" in stdout
    assert "went away" in stderr
    assert "Traceback" not in stderr
    report = Report.from_json(path.read_text())
    assert report.ended == "unavailable"
    assert report.cells[0].requests >= 10


def test_ctrl_c_shows_what_there_is(server: Server, repository: Path):
    arguments = ("--url", server.grpc_url, "--rows", repository, "--batch", "1", "--duration", 60, "--json")
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        await_requests(server, 400)
        run.send_signal(signal.SIGINT)
        stdout, stderr = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Traceback" not in stderr
    report = Report.from_json(stdout)
    assert report.ended == "interrupted"
    assert report.cells[0].requests > 20
    assert not report.cells[0].complete


def await_requests(server: Server, count: int) -> None:
    """Wait until the ensemble has answered `count` more requests."""
    goal, deadline = answered(server) + count, time.monotonic() + 60
    while answered(server) < goal:
        assert time.monotonic() < deadline, "the program sends nothing"
        time.sleep(0.05)
