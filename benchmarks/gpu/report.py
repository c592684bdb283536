"""What was found on a GPU, beside one core and the paper: JSON, Markdown, and a report for `tristage compare`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tristage.loadtest._latency import Histogram, Latency, bands
from tristage.loadtest._report import SCHEMA, Cell, Report, StepShare

__all__ = ["publish"]

RESULTS = Path(__file__).parents[1] / "results"
BAR = 0.007  # ms/example of the paper-size stack at the best batch size: three times the paper's rate
TIMES = 50  # faster than one core
# RecSys Challenge 2021, the winners' table: 15 M rows, seconds by step
PAPER = {
    "preprocess": (4155, 69),
    "feature engineering": (10334, 119),
    "XGBoost models": (7193, 43),
    "neural nets": (8540, 100),
    "all": (30223, 330),
}
PAPER_CORE, PAPER_A100 = 5.68, 0.022  # ms/example
A100_HOUR, CORES_HOUR = 3.675, 0.36  # dollars, as in the paper


def publish(found: Path) -> int:
    """Write results/gpu_STACK.json, .md and .report.json; 1 is returned where a bar is missed, 2 without a GPU."""
    said = json.loads(found.read_text(encoding="utf-8"))
    if said["device"] != "cuda":
        print("it was measured without a GPU; nothing is published", file=sys.stderr)
        return 2
    core = RESULTS / "single_core_paper.json"
    beside = json.loads(core.read_text(encoding="utf-8")) if core.is_file() else None
    name = f"gpu_{said['stack']}"
    report = _report(said)
    for cell in said["cells"]:
        del cell["nanoseconds"]
    (RESULTS / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.report.json").write_text(report.to_json() + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text("\n".join(_markdown(said, beside)) + "\n", encoding="utf-8")
    print(RESULTS / f"{name}.md")
    missed = [text for text, _, met in _bars(said, beside) if not met]
    print(*(f"missed: {text}" for text in missed), sep="\n", file=sys.stderr)
    return 1 if missed else 0


def _best(said: Mapping[str, Any]) -> dict[str, Any]:
    cells: list[dict[str, Any]] = said["cells"]
    return min(cells, key=lambda cell: float(cell["ms_per_example"]))


def _core(beside: Mapping[str, Any]) -> float:
    """ms/example of tristage on one core, at its best batch size."""
    turns = beside["turns"]["fused"]
    return min(float(np.median([turn["ms_per_example"] for turn in its])) for its in turns.values())


def _bars(said: Mapping[str, Any], beside: Mapping[str, Any] | None) -> Iterator[tuple[str, str, bool]]:
    best = _best(said)["ms_per_example"]
    furthest = max(value for its in said["parity"].values() for value in its.values())
    yield (
        f"answers within {said['tolerance']:g} of the training libraries'",
        f"{furthest:.1e}",
        furthest <= said["tolerance"],
    )
    yield f"at most {BAR} ms/example at the best batch size", f"{best:.5f}", best <= BAR
    if beside is not None:
        times = _core(beside) / best
        yield f"at least {TIMES} times one core", f"{times:,.0f}", times >= TIMES


def _markdown(said: Mapping[str, Any], beside: Mapping[str, Any] | None) -> Iterator[str]:
    gpu, best, work = said["gpu"], _best(said), said["sizes"]["a_row"]
    yield f"# The stack {said['stack']} on a GPU"
    yield ""
    yield (
        f"`python -m benchmarks.gpu`, {said['date'][:10]}, one {gpu['name']} ({gpu['memory_gb']:.0f} GB), PyTorch "
        f"{said['torch']}, CUDA {said['cuda']}, tristage {said['tristage']}; {said['host']['threads']} threads of "
        "the host's for texts. From arrays on the host to answers on the host, without a server; rows are "
        f"{said['golden_rows']:,} golden ones, drawn by a power law. Opened in {said['opened_s']:.1f} s. A row meets "
        f"{work['trees_met']:,.0f} trees, {work['node_visits']:,.0f} nodes of them, and {work['macs'] / 1e6:,.1f} M "
        "multiply-accumulates."
    )
    yield ""
    yield "| bar | measured | |"
    yield "|---|---|---|"
    for text, value, met in _bars(said, beside):
        yield f"| {text} | {value} | {'met' if met else '**missed**'} |"
    yield ""
    yield "| batch | ms/example | p50 ms | p99 ms | examples/s | GPU memory, GB | calls |"
    yield "|---|---|---|---|---|---|---|"
    for cell in said["cells"]:
        yield (
            f"| {cell['batch']:,} | {cell['ms_per_example']:.5f} | {cell['p50_ms']:.3f} | {cell['p99_ms']:.3f} | "
            f"{1e3 / cell['ms_per_example']:,.0f} | {cell['peak_gb']:.1f} | {cell['calls']:,} |"
        )
    yield ""
    yield "## By part, each by itself, ms/example"
    yield ""
    batches = list(said["parts"])
    yield f"| part | {' | '.join(f'batch {int(batch):,}' for batch in batches)} |"
    yield f"|---|{'---|' * len(batches)}"
    for part in said["parts"][batches[-1]]:
        figures = [f"{said['parts'][batch][part] * 1e3 / int(batch):.6f}" for batch in batches]
        yield f"| {part} | {' | '.join(figures)} |"
    yield ""
    yield "## Against what the card can do"
    yield ""
    rate = 1e3 / best["ms_per_example"]
    visited, tops = work["node_visits"] * rate * 6 / 1e9, work["macs"] * rate * 2 / 1e12
    top = said["ceilings"]
    yield (
        f"At {rate:,.0f} examples/s: nodes and ranks of forests, {visited:,.0f} GB/s (random reads of 4 bytes reach "
        f"{top['gather_gb_s']:,.0f}, a copy {top['copy_gb_s']:,.0f}; nodes fit the caches); nets, {tops:.1f} TFLOP/s "
        f"in float32 (a product of matrices reaches {top['float32_tflop_s']:.1f})."
    )
    yield ""
    yield "## Beside one core and the paper"
    yield ""
    yield "| | ms/example | dollars for 15 M examples |"
    yield "|---|---|---|"
    yield f"| the paper, one CPU core | {PAPER_CORE} | |"
    yield f"| the paper, 8 vCPU | {PAPER['all'][0] / 15e3:.3f} | {PAPER['all'][0] / 3600 * CORES_HOUR:.2f} |"
    yield f"| the paper, one A100 | {PAPER_A100} | {PAPER['all'][1] / 3600 * A100_HOUR:.2f} |"
    if beside is not None:
        yield f"| tristage, one core of {beside['machine']['processor']}, through Triton | {_core(beside):.3f} | |"
    cost = best["ms_per_example"] * 15e6 / 3.6e6 * A100_HOUR
    ours = f"{best['ms_per_example']:.5f} | {cost:.3f} at the A100's price"
    yield f"| tristage, one {gpu['name']}, batch {best['batch']:,} | {ours} |"
    if said["on_host"]:
        yield ""
        yield f"On the host: {'; '.join(f'{name} ({why})' for name, why in said['on_host'].items())}."


def _report(said: Mapping[str, Any]) -> Report:
    """The same for `tristage compare`, whose steps are parts."""
    return Report(
        schema=SCHEMA,
        created=said["date"],
        version=said["tristage"],
        machine={"processor": said["gpu"]["name"], **said["host"]},
        url="in process",
        protocol="given",
        server="none: arrays on the host in, arrays on the host out",
        stack=said["stack"],
        mode="closed",
        arrivals=None,
        duration_s=None,
        band=None,
        longest_s=None,
        requests=None,
        warmup_s=0.0,
        rows="golden rows",
        row_count=said["golden_rows"],
        draw="power law, exponent 1",
        ended="completed",
        message="",
        cells=tuple(_cell(cell, said["parts"].get(str(cell["batch"]), {})) for cell in said["cells"]),
        found=(),
        notes=(),
    )


def _cell(cell: Mapping[str, Any], parts: Mapping[str, float]) -> Cell:
    took = np.array(cell["nanoseconds"], np.int64)
    whole = sum(parts.values())
    return Cell(
        batch=cell["batch"],
        concurrency=1,
        rate=None,
        complete=True,
        elapsed_s=float(took.sum() / 1e9),
        requests=cell["calls"],
        examples=cell["calls"] * cell["batch"],
        ms_per_example=cell["ms_per_example"],
        examples_per_s=1e3 / cell["ms_per_example"],
        latency=Latency.of(took),
        histogram=Histogram.of(took),
        bands=bands(took),
        settled=None,
        late=None,
        errors=(),
        server_ms=None,
        outside_ms=None,
        client_cpu_ms=None,
        overlap_ms=None,
        server=None,
        steps=tuple(
            StepShare(name, cell["calls"], cell["calls"], 0.0, 0.0, value * 1e3, 0.0, value / whole, (), True)
            for name, value in parts.items()
        ),
        notes=(),
    )
