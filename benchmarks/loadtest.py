"""What the load tester itself costs, and whether NVIDIA's perf_analyzer sees the same.

`python -m benchmarks.loadtest [REPOSITORY ...]` from the repository's root serves a Triton model that answers what it
is sent, one that sleeps 5 ms before, and then each repository (`model_repository`, if `make demo` left one there), on
one core. Both load testers run the same closed loop with the same rows on the other cores, in turns, over HTTP and
gRPC. It prints the two side by side and writes results/loadtest.json and results/loadtest.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import perf_analyzer
from benchmarks.perf_analyzer import Measured
from tristage.client import Client, encode
from tristage.columns import SIGNATURE_PARAMETER, Column, Signature
from tristage.loadtest import rows_from, run_loadtest
from tristage.manifest import Manifest, checksums, write_manifest
from tristage.serving import serve

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 64)
ROUNDS = 5  # if not said
AGREE = 0.05
MODELS = {"identity": 0.0, "five_ms": 0.005}  # seconds that each sleeps before it answers what it was sent

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 1024
input [ {{ name: "x" data_type: TYPE_FP32 dims: [1] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [1] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters {{ key: "{key}" value {{ string_value: {signature} }} }}
"""

SLEEP = "        time.sleep({seconds})\n"
MODEL = """
import time
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        time.sleep({seconds})
        inputs = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("y", values)]) for values in inputs]
"""


def write_model(root: Path, name: str, seconds: float) -> Path:
    """A repository of one model that sleeps, and answers what it is sent."""
    signature = Signature(name, 1024, (Column("x", "float32"),), (Column("y", "float32"),))
    (root / name / "1").mkdir(parents=True)
    config = CONFIG.format(name=name, key=SIGNATURE_PARAMETER, signature=json.dumps(signature.to_json()))
    (root / name / "config.pbtxt").write_text(config)
    (root / name / "1" / "model.py").write_text(MODEL.format(seconds=seconds) if seconds else MODEL.replace(SLEEP, ""))
    values = pa.array([float(number) for number in range(1000)], pa.float32())
    pq.write_table(pa.table({"x": values, "expected.y": values}), root / "golden.parquet")
    manifest = Manifest(name, "pip-cpu", "ensemble", signature, {name: name}, versions={}, files=checksums(root))
    write_manifest(root, manifest)
    return root


def ours(url: str, rows: Any, *, batch: int, concurrency: int, seconds: float) -> Measured:
    """The same closed loop by tristage's load tester, which keeps off the server's core by itself."""
    report = run_loadtest(url, rows=rows, batches=(batch,), concurrencies=(concurrency,), duration=seconds, warmup=0.5)
    (cell,) = report.cells
    assert cell.latency is not None
    assert cell.server_ms is not None
    assert not cell.errors
    latency = cell.latency
    return Measured(latency.mean_ms, latency.p50_ms, latency.p99_ms, cell.examples_per_s, cell.server_ms)


def compare(
    repository: Path, label: str, program: Any, concurrencies: Sequence[int], seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """Both load testers on one repository, in turns; a line, with its label, a protocol, batch size and concurrency."""
    cores = sorted(os.sched_getaffinity(0))
    lines = []
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(repository, cores=cores[:1], http_port=0, grpc_port=0, metrics_port=0) as server,
    ):
        with Client(server.grpc_url) as client:
            signature = client.signature
        rows = rows_from(repository)
        data = Path(folder) / "rows.json"
        perf_analyzer.write_rows(encode(rows, signature), signature, data)
        for url in (server.http_url, server.grpc_url):
            for batch in (batch for batch in BATCHES if batch <= signature.max_batch):
                for concurrency in concurrencies:
                    load: dict[str, Any] = {"batch": batch, "concurrency": concurrency, "seconds": seconds}
                    both = [
                        (
                            perf_analyzer.measure(
                                program, url, signature.stack, data, cores=cores[1:] or cores, **load
                            ),
                            ours(url, rows, **load),
                        )
                        for _ in range(rounds)
                    ]
                    lines.append(line(label, url.partition(":")[0], batch, concurrency, both))
                    print(table(lines[-1:]).splitlines()[-1], flush=True)
    return lines


def line(model: str, protocol: str, batch: int, concurrency: int, both: list[tuple[Measured, Measured]]) -> Any:
    """Medians of the rounds, and the median of the rounds' ratios: the two of a round ran within seconds."""
    sides = {"perf_analyzer": [theirs for theirs, _ in both], "tristage": [mine for _, mine in both]}
    figures = {
        f"{name}_{field}": median(asdict(one)[field] for one in side)
        for name, side in sides.items()
        for field in asdict(side[0])
    }
    return {
        "model": model,
        "protocol": protocol,
        "batch": batch,
        "concurrency": concurrency,
        **figures,
        "ratio_p50": median(mine.p50_ms / theirs.p50_ms for theirs, mine in both),
        "ratio_best_p50": min(mine.p50_ms for _, mine in both) / min(theirs.p50_ms for theirs, _ in both),
        "ratio_throughput": median(mine.examples_per_s / theirs.examples_per_s for theirs, mine in both),
    }


def beyond_identity(lines: Sequence[Any]) -> list[Any]:
    """Each line with the ratio of what the two p50 take more than those of the same load on `identity`."""
    load = ("protocol", "batch", "concurrency")
    least = {tuple(one[name] for name in load): one for one in lines if one["model"] == "identity"}

    def ratio(one: Any) -> float:
        none = least[tuple(one[name] for name in load)]
        mine, theirs = (one[f"{tool}_p50_ms"] - none[f"{tool}_p50_ms"] for tool in ("tristage", "perf_analyzer"))
        return float(mine / theirs)

    return [one if one["model"] == "identity" else {**one, "ratio_beyond": ratio(one)} for one in lines]


def table(lines: Sequence[Any]) -> str:
    """The lines as Markdown."""
    rows = [
        "| model | protocol | batch | conc. | p50 ms: perf_analyzer, tristage | ratio | ratio of the best | "
        "examples/s: perf_analyzer, tristage | ratio | outside the server, ms: perf_analyzer, tristage | "
        "ratio beyond identity |",
        "|---" * 11 + "|",
    ]
    for one in lines:
        outside = [one[f"{name}_mean_ms"] - one[f"{name}_server_ms"] for name in ("perf_analyzer", "tristage")]
        cells = [
            *(one["model"], one["protocol"], str(one["batch"]), str(one["concurrency"])),
            f"{one['perf_analyzer_p50_ms']:.3f}, {one['tristage_p50_ms']:.3f}",
            *(f"{one['ratio_p50']:.3f}", f"{one['ratio_best_p50']:.3f}"),
            f"{one['perf_analyzer_examples_per_s']:,.0f}, {one['tristage_examples_per_s']:,.0f}",
            *(f"{one['ratio_throughput']:.3f}", f"{outside[0]:.3f}, {outside[1]:.3f}"),
            f"{one['ratio_beyond']:.3f}" if "ratio_beyond" in one else "",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def report(lines: Sequence[Any], seconds: float, rounds: int) -> str:
    """What is published: the table, how it was made, and how often the two agree."""
    timed = [one for one in lines if one["model"] != "identity"]
    apart = sum(abs(one["ratio_throughput"] - 1) > AGREE for one in timed)
    beyond = sum(abs(one["ratio_beyond"] - 1) > AGREE for one in timed)
    text = [
        "# The load tester beside NVIDIA's perf_analyzer",
        f"`python -m benchmarks.loadtest`: tritonserver 2.51 on one core, the load testers in turns on the others, "
        f"closed loop, the same rows; medians of {rounds} rounds of {seconds:g} s. Ratios are tristage / "
        "perf_analyzer within a round; the ratio of the best is that of the two best medians, which other work on the "
        "machine disturbs least. `identity` answers what it is sent: what remains is what a load tester and its "
        "protocol cost, and the last column leaves that out of both p50. `five_ms` sleeps 5 ms before.",
        table(lines),
        f"Of models that take their time, examples/s differ by more than {AGREE:.0%} in {apart} of {len(timed)} lines; "
        f"p50 beyond `identity` in {beyond}.",
    ]
    return "\n\n".join(text) + "\n"


def main() -> None:
    """Measure everything in one run and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repositories", nargs="*", type=Path, help="repositories to serve besides the identity model")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="in which the two take turns")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder that loadtest.json and .md go to")
    options = parser.parse_args()
    default = Path("model_repository")
    repositories = options.repositories or ([default] if (default / "manifest.json").is_file() else [])
    with tempfile.TemporaryDirectory() as folder:
        libraries = Path(folder) / "libraries"
        libraries.mkdir()
        program = perf_analyzer.find(libraries)
        labels = {write_model(Path(folder) / name, name, seconds): name for name, seconds in MODELS.items()}
        labels |= {repository: str(repository) for repository in repositories}
        lines = [
            found
            for repository, label in labels.items()
            for found in compare(repository, label, program, options.concurrency, options.seconds, options.rounds)
        ]
    text = report(beyond_identity(lines), options.seconds, options.rounds)
    (options.output / "loadtest.md").write_text(text, encoding="utf-8")
    (options.output / "loadtest.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
