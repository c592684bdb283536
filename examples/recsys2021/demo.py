"""The main job, end to end: train, export, serve on one core, verify, predict, measure, report.

Run it from the repository's root with `make demo`, or `python -m examples.recsys2021.demo`.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table

from examples.recsys2021 import TARGETS
from examples.recsys2021.metrics import grouped_scores
from examples.recsys2021.train import STAGE1, Scores, train
from tristage.client import Client
from tristage.client.golden import Verification, verify
from tristage.errors import TristageError
from tristage.export import Prepared, prepare, write
from tristage.export.stack_file import read_stack
from tristage.loadtest import Report, run_loadtest, write_report
from tristage.serving import Server, serve
from tristage.terminal import console, out, progress, stages

__all__ = ["LIMIT_MS", "main"]

LIMIT_MS = 6.0  # the challenge's limit: milliseconds per example on one CPU core
BATCHES = (1, 64, 1024)
FOLLOWERS = (240, 588, 1331, 3996)  # cuts between the five groups of authors
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Measured:
    """Everything the demo found out.

    Attributes:
        report: the load test over gRPC, a Triton model per step.
        fused: the load test of one row at a time with all steps in one Triton model.
        verifications: the replay of the golden rows over HTTP and over gRPC.
        scores: model -> metric -> target or "average"; "stack" is computed from served answers.
        rows: held-out rows that were scored by the server.
        seconds: stage -> how long it took.
    """

    report: Report
    fused: Report
    verifications: Sequence[Verification]
    scores: Scores
    rows: int
    seconds: dict[str, float]


def run(repository: Path, retrain: bool, seconds: float) -> Measured:
    """Do the main job.

    Args:
        repository: where the exported stack goes; a stack that is there is replaced.
        retrain: train even if the artifacts are there.
        seconds: how long each batch size is measured.
    """
    spent: dict[str, float] = {}
    trained = _timed(spent, "train", lambda: train(retrain=retrain))
    console.print(f"{'found' if trained.reused else 'trained'} the stack in {trained.folder}")
    prepared = _timed(spent, "export", lambda: _export(trained.folder / "stack.yaml", repository))
    table = pq.read_table(trained.folder / "test_rows.parquet")
    cores = os.sched_getaffinity(0)
    with _served(repository, cores) as server:
        console.print(f"Triton serves {repository} on one core: {server.http_url}, {server.grpc_url}")
        verifications = _timed(
            spent, "verify", lambda: [_verify(url, repository) for url in (server.http_url, server.grpc_url)]
        )
        answers = _timed(spent, "predict", lambda: _predict(server.http_url, server.grpc_url, table))
        report = _timed(spent, "measure", lambda: _measure(server.grpc_url, table, BATCHES, seconds))
    with tempfile.TemporaryDirectory() as folder:
        fused = _timed(spent, "fused", lambda: _measure_fused(prepared, Path(folder) / "fused", cores, table, seconds))
    group = np.digitize(np.asarray(table["a_follower_count"]), FOLLOWERS)
    truth = np.stack([np.asarray(table[target]) for target in TARGETS], axis=1)
    scores = {name: trained.scores[name] for name in STAGE1} | {"stack": grouped_scores(truth, answers, group)}
    return Measured(report, fused, verifications, scores, table.num_rows, spent)


def _timed(spent: dict[str, float], stage: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    made = work()
    spent[stage] = time.perf_counter() - start
    return made


@contextmanager
def _served(repository: Path, cores: set[int]) -> Iterator[Server]:
    """Triton on the first core; this process, which is the client, keeps off it where there is another."""
    core = min(cores)
    with serve(repository, cores=[core], http_port=0, grpc_port=0, metrics_port=0) as server:
        os.sched_setaffinity(0, cores - {core} or cores)
        try:
            yield server
        finally:
            os.sched_setaffinity(0, cores)


def _export(stack: Path, repository: Path) -> Prepared:
    declared = read_stack(stack)
    # a stage for every step, then the training libraries, the comparison and the writing
    with stages("export", len(declared.steps) + 3) as on_stage:
        prepared = prepare(declared, trust=True, on_stage=on_stage)
        on_stage("writing")
        write(prepared, repository, overwrite=True)
    return prepared


def _verify(url: str, repository: Path) -> Verification:
    with Client(url) as client:
        verification = verify(client, repository)
        verification.check()
        return verification


def _predict(http: str, grpc: str, table: Any) -> Any:
    """Score every held-out row over gRPC and a few over HTTP, which must be the same."""
    with Client(http) as over_http, Client(grpc) as over_grpc, progress() as bars:
        few = table.slice(0, 256)
        task = bars.add_task("predict held-out rows", total=table.num_rows)
        parts = []
        for start in range(0, table.num_rows, over_grpc.signature.max_batch):
            part = table.slice(start, over_grpc.signature.max_batch)
            parts.append(_matrix(over_grpc.predict(part, unknown="ignore")))
            bars.advance(task, part.num_rows)
        answers = np.concatenate(parts)
        difference = np.abs(_matrix(over_http.predict(few, unknown="ignore")) - answers[: few.num_rows]).max()
        if difference > 1e-5:
            raise SystemExit(f"HTTP and gRPC answers differ by {difference:.2g}")
        return answers


def _matrix(answers: Any) -> Any:
    return np.stack([np.asarray(answers[target]) for target in TARGETS], axis=1)


def _measure(url: str, table: Any, batches: Sequence[int], seconds: float) -> Report:
    with Client(url) as client:
        names = [column.name for column in client.signature.inputs]
    with progress() as bars:
        task = bars.add_task("measure", total=len(batches))
        report = run_loadtest(
            url,
            rows=table.select(names),
            batches=batches,
            duration=seconds,
            warmup=1.0,
            source="held-out rows",
            watch=lambda tick: bars.update(task, description=f"measure batch {tick.batch}", completed=tick.cell),
        )
        bars.update(task, description="measure", completed=len(batches))
        return report


def _measure_fused(prepared: Prepared, repository: Path, cores: set[int], table: Any, seconds: float) -> Report:
    """One row at a time through the same stack in one Triton model, verified as well."""
    write(prepared, repository, layout="fused")
    with _served(repository, cores) as server:
        _verify(server.grpc_url, repository)
        return _measure(server.grpc_url, table, BATCHES[:1], seconds)


def summary(measured: Measured) -> Table:
    """The one table: what an example costs, how exact the answers are, how good the models are."""
    table = Table(title="recsys2021, small, on one CPU core", show_header=False, title_style="bold")
    table.add_column("what", no_wrap=True)
    table.add_column("figure", justify="right", no_wrap=True)
    table.add_column("beside", no_wrap=True)
    for layout, report in (("", measured.report), (", fused", measured.fused)):
        for cell in report.cells:
            cost = cell.ms_per_example or math.nan  # None where nothing was answered
            beside = f"limit {LIMIT_MS:g} ms = {LIMIT_MS / cost:.3g} x this"
            table.add_row(f"ms/example, batch {cell.batch}{layout}", f"{cost:.3f}", beside)
    table.add_section()
    rows = measured.verifications[0].rows
    for target in TARGETS:
        table.add_row(f"furthest off, {target}", f"{_worst(measured, target):.1e}", f"{rows:,} rows, HTTP and gRPC")
    table.add_section()
    for name, score in measured.scores.items():
        final = name == "stack"
        figure = f"AP {score['ap']['average']:.4f} RCE {score['rce']['average']:5.2f}"
        beside = f"{measured.rows:,} rows, as served" if final else "stage 1"
        table.add_row("final stack" if final else name, figure, beside, style="bold" if final else None)
    table.caption = (
        "ms/example: over gRPC, one request on its way, a Triton model per step; fused: all steps in one. Furthest "
        "off: largest difference from the training libraries' answers on held-out rows. AP, RCE: held-out rows, "
        "averaged over the five author groups."
    )
    return table


def write_markdown(measured: Measured, path: Path) -> None:
    """The report: the same figures, the steps' shares, and how they came about."""
    report = measured.report
    machine = ", ".join(f"{key} {value}" for key, value in sorted(report.machine.items()))
    cells = [cell for cell in report.cells if cell.latency is not None]
    costs = [
        (
            f"{cell.batch}{'' if cell in cells else ', fused'}",
            f"{cell.ms_per_example:.3f}",
            f"{cell.latency.p50_ms:.2f}",
            f"{cell.latency.p99_ms:.2f}",
        )
        for cell in (*cells, *measured.fused.cells)
        if cell.latency
    ]
    shares = [
        (steps[0].model, *(f"{step.share:.1%}" for step in steps))
        for steps in zip(*(c.steps for c in cells), strict=True)
    ]
    scores = [
        (name, f"{score['ap']['average']:.4f}", f"{score['rce']['average']:.2f}")
        for name, score in measured.scores.items()
    ]
    parts = [
        "# recsys2021, small, served on one CPU core",
        f"{report.created}, tristage {report.version}. {machine}.",
        _markdown(("batch", "ms/example", "p50 ms", "p99 ms"), costs),
        "Share of each step's time, by Triton's statistics:",
        _markdown(("step", *(f"batch {cell.batch}" for cell in cells)), shares),
        "Held-out rows; the final stack's by served answers:",
        _markdown(("model", "AP", "RCE"), scores),
        "Largest difference from the training libraries:",
        _markdown(("output", "difference"), [(target, f"{_worst(measured, target):.1e}") for target in TARGETS]),
        "Seconds: " + ", ".join(f"{stage} {value:.1f}" for stage, value in measured.seconds.items()) + ".",
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _worst(measured: Measured, target: str) -> float:
    return max(verification.differences[target] for verification in measured.verifications)


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (headings, ["---"] * len(headings), *rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="where the export goes")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports", help="where the report goes")
    parser.add_argument("--retrain", action="store_true", help="train even if the artifacts are there")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each batch size is measured")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else TensorFlow announces them on stderr
    try:
        measured = run(options.repository, options.retrain, options.seconds)
    except TristageError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return error.exit_code
    options.reports.mkdir(parents=True, exist_ok=True)
    write_report(measured.report, options.reports / "recsys2021.json")
    write_markdown(measured, options.reports / "recsys2021.md")
    out.print(summary(measured))
    console.print(
        f"{sum(measured.seconds.values()):.0f} s in all. Report: {options.reports / 'recsys2021.md'}. "
        f"Serve it yourself: tristage serve {options.repository} --cores 0"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
