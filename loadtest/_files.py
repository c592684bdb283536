"""Reports as files: JSON for machines, CSV for spreadsheets, Markdown for documents, HTML for people."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from tristage.errors import InputError, TristageError
from tristage.loadtest._html import page
from tristage.loadtest._report import Cell, Report
from tristage.loadtest._words import describe, figure, finding, where

__all__ = ["FORMATS", "check_path", "csv_of", "markdown_of", "write_report", "write_text"]

_COLUMNS = (
    *("batch", "concurrency", "rate", "complete", "elapsed_s", "requests", "examples", "ms_per_example"),
    *("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms", "examples_per_s", "errors"),
    *("server_ms", "outside_ms", "client_cpu_ms", "server_cpu_ms_per_example", "server_cores", "server_peak_mb"),
)


def csv_of(report: Report) -> str:
    """A line a cell, a column a figure; empty where there is none. Steps follow as columns `step NAME queue_ms` and
    `step NAME compute_ms`."""
    steps = list(dict.fromkeys(step.model for cell in report.cells for step in cell.steps))
    names = [f"step {step} {what}_ms" for step in steps for what in ("queue", "compute")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *names])
    for cell in report.cells:
        its = {step.model: step for step in cell.steps}
        times = [
            value
            for step in steps
            for value in ((its[step].queue_ms, its[step].compute_ms) if step in its else (None, None))
        ]
        writer.writerow([*_line(cell), *times])
    return text.getvalue()


def _line(cell: Cell) -> list[object]:
    latency, server = cell.latency, cell.server
    figures: Mapping[str, object] = {
        **{name: getattr(latency, name, None) for name in _COLUMNS if name.endswith("_ms")},
        **{name: getattr(cell, name) for name in _COLUMNS if hasattr(cell, name)},
        "errors": cell.failed,
        "server_cpu_ms_per_example": None if server is None else server.cpu_ms_per_example,
        "server_cores": None if server is None else server.cores,
        "server_peak_mb": None if server is None else server.peak_mb,
    }
    return [figures[name] for name in _COLUMNS]


def markdown_of(report: Report) -> str:
    """The report's tables as Markdown."""
    rate = any(cell.rate is not None for cell in report.cells)
    head = ["batch", "connections", *(["requests/s due"] if rate else []), "ms/example"]
    head += ["p50", "p90", "p95", "p99", "p99.9", "max", "examples/s", "errors", "server CPU ms/example", "peak MB"]
    lines = [f"# {report.stack}: load test", "", describe(report), "", *_row(head), _rule(len(head))]
    for cell in report.cells:
        latency, server = cell.latency, cell.server
        names = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
        lines += _row(
            [
                *(str(cell.batch) + ("" if cell.complete else " (cut short)"), str(cell.concurrency)),
                *([figure(cell.rate)] if rate else []),
                f"**{figure(cell.ms_per_example)}**",
                *(figure(None if latency is None else getattr(latency, name)) for name in names),
                *(f"{cell.examples_per_s:,.0f}", str(cell.failed)),
                figure(None if server is None else server.cpu_ms_per_example),
                figure(None if server is None else server.peak_mb),
            ]
        )
    lines += ["", "p50 to max: ms a request."]
    for found in report.found:
        lines += ["", f"**{finding(found)}**"]
    for cell in report.cells:
        if cell.steps:
            head = ["step", "queue ms", "compute ms", "share", "may run beside"]
            lines += ["", f"## Steps, {where(cell)}", "", *_row(head), _rule(len(head))]
            for step in cell.steps:
                times = [figure(step.queue_ms), figure(step.compute_ms), f"{step.share:.1%}"]
                lines += _row([step.model + (" *" if step.critical else ""), *times, ", ".join(step.beside)])
            lines += ["", f"{figure(cell.server_ms)} ms in the server, {figure(cell.outside_ms)} outside. "
                      "\\*: on the longest chain of steps."]  # fmt: skip
    notes = [*report.notes, *(f"{where(cell)}: {note}" for cell in report.cells for note in cell.notes)]
    notes += [f"{where(c)}: {e.count} x {e.kind}: {e.message}" for c in report.cells for e in c.errors]
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)]) + "\n"


def _row(cells: list[str]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"]


def _rule(columns: int) -> str:
    return "|---" * columns + "|"


FORMATS: Mapping[str, Callable[[Report], str]] = {
    ".json": lambda report: report.to_json() + "\n",
    ".csv": csv_of,
    ".md": markdown_of,
    ".html": page,
}


def check_path(path: Path, formats: Collection[str] = FORMATS) -> None:
    """Raise InputError where a report cannot be meant to go to `path`."""
    if path.suffix not in formats or not path.parent.is_dir():
        raise InputError(
            f"the report cannot be written to {path}; give -o a file in a folder that exists, named "
            f"{', '.join(f'FILE{suffix}' for suffix in formats)}"
        )


def write_report(report: Report, path: Path) -> None:
    """Write the report to `path`, in the format that its name asks for.

    Raises:
        InputError: no format goes by that name, or the folder does not exist.
        TristageError: the file cannot be written; what was at `path` is untouched.
    """
    check_path(path)
    write_text(FORMATS[path.suffix](report), path)


def write_text(text: str, path: Path) -> None:
    """Write a text beside `path` first and then rename it, so that `path` is never half a report.

    Raises:
        TristageError: the file cannot be written; what was at `path` is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise TristageError(
            f"the report {path} cannot be written ({error.strerror or error}); give -o a file in a folder "
            "that can be written and has room"
        ) from error
