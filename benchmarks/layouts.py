"""What the layout costs: the small reference stack as one Triton model per step, and fused into one.

`python -m benchmarks.layouts` from the repository's root (after `make demo`, which trains the stack) exports both,
serves them one after the other on one core, and writes results/layouts.json and results/layouts.md.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from examples.recsys2021.train import train
from tristage.client import Client, verify
from tristage.export import LAYOUTS, Prepared, prepare, write
from tristage.export.stack_file import read_stack
from tristage.loadtest import Report, run_loadtest
from tristage.serving import serve

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 64, 1024)
SECONDS = 5.0


def measure(prepared: Prepared, rows: Any, layout: str, folder: Path) -> Report:
    """Write a stack in a layout, prove it, and load-test it over gRPC on one core."""
    repository = write(prepared, folder / layout, layout=layout).path
    cores = os.sched_getaffinity(0)
    core = min(cores)
    with serve(repository, cores=[core], http_port=0, grpc_port=0, metrics_port=0) as server:
        with Client(server.grpc_url) as client:
            verify(client, repository).check()
            names = [column.name for column in client.signature.inputs]
        os.sched_setaffinity(0, cores - {core} or cores)  # the client keeps off the server's core
        try:
            every = rows.select(names)
            return run_loadtest(server.grpc_url, rows=every, batches=BATCHES, duration=SECONDS, source="test rows")
        finally:
            os.sched_setaffinity(0, cores)


def table(reports: dict[str, Report]) -> str:
    """The figures as Markdown, with the ratio of the two."""
    lines = ["| batch | " + " | ".join(f"{layout}: ms/example, p50, p99" for layout in reports) + " | ratio |"]
    lines.append("|---" * (len(reports) + 2) + "|")
    for cells in zip(*(report.cells for report in reports.values()), strict=True):
        figures = [
            f"{cell.ms_per_example:.3f}, {cell.latency.p50_ms:.2f}, {cell.latency.p99_ms:.2f}"
            for cell in cells
            if cell.latency is not None
        ]
        first, last = (cell.ms_per_example or 0.0 for cell in (cells[0], cells[-1]))
        lines.append(f"| {cells[0].batch} | {' | '.join(figures)} | {first / last:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure both layouts in one run and write the results."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    trained = train()
    prepared = prepare(read_stack(trained.folder / "stack.yaml"), trust=True)
    rows = pq.read_table(trained.folder / "test_rows.parquet")
    with tempfile.TemporaryDirectory() as folder:
        reports = {layout: measure(prepared, rows, layout, Path(folder)) for layout in LAYOUTS}
    first: Any = next(iter(reports.values()))
    document = {layout: asdict(report) for layout, report in reports.items()}
    (RESULTS / "layouts.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = [
        "# Layouts: a Triton model per step, or all steps in one",
        f"`python -m benchmarks.layouts`, {first.created[:10]}, tristage {first.version}, "
        f"{first.machine['processor']}, Triton 2.51 on one core, one gRPC client on another, small reference stack, "
        f"{SECONDS:g} s a cell.",
        table(reports),
        "The ratio is ensemble over fused. Both layouts were verified against the training libraries in this run.",
    ]
    (RESULTS / "layouts.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))


if __name__ == "__main__":
    main()
