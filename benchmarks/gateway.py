"""What the gateway adds to a request: JSON and Arrow through it, beside the client that asks Triton itself.

`python -m benchmarks.gateway` from the repository's root, after `python -m examples.recsys2021.train --size small`,
exports the stack, once, into .cache/single_core, and serves it fused by Triton on one core. The gateway, a process of
its own, and the caller share another. The ways take turns at every batch size, and the results go to
results/gateway.json and gateway.md. Every way goes from the caller's rows to the caller's answers: making the body or
the tensors and reading the answer is in its time.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.baselines.exported import exported
from benchmarks.baselines.figures import BATCHES
from benchmarks.baselines.process import ROOT
from benchmarks.baselines.rows import draws, test_rows
from tristage.client import Client, verify
from tristage.client._wire import Address
from tristage.columns import Signature
from tristage.errors import ServerUnavailable
from tristage.loadtest._http1 import Http1
from tristage.loadtest._machine import machine
from tristage.manifest import read_manifest
from tristage.serving import serve

RESULTS = Path(__file__).parent / "results"
ARTIFACTS = ROOT / "examples" / "recsys2021" / "artifacts" / "small"
ARROW = "application/vnd.apache.arrow.stream"
BAR_MS = 0.6  # that JSON may add to one row, by p50
WARM, LEAST = 5, 20  # requests before each turn, and in it
LIBRARIES = ("tristage", "fastapi", "starlette", "uvicorn", "httptools", "pydantic-core", "pyarrow", "grpcio")


@dataclass(frozen=True)
class Way:
    """A way to an answer.

    Attributes:
        title: what the report calls it.
        direct: the way that asks Triton itself with the same rows; "" where this is one.
        rows: a pyarrow.Table -> what the caller has.
        ask: what the caller has -> answers in the same shape.
    """

    title: str
    direct: str
    rows: Callable[[Any], Any]
    ask: Callable[[Any], Any]


@dataclass(frozen=True)
class Turn:
    """One way at one batch size, asked again and again for some seconds, one request on its way.

    Attributes:
        took_ms: of each request, in the order they were sent.
        cpu_ms: CPU time of the gateway a request; 0 of a way that leaves it out.
    """

    took_ms: tuple[float, ...]
    cpu_ms: float


def dicts(table: Any) -> list[dict[str, Any]]:
    """A table as rows that JSON can say."""
    return [
        {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        for row in table.to_pylist()
    ]


def ways(port: int, client: Client) -> dict[str, Way]:
    """All that are measured. Connections are kept, and HTTP is spoken over a plain socket: it is the gateway that is
    measured, and not an HTTP client."""
    address = Address("http", "127.0.0.1", port)
    connection = Http1(address, "", 120.0)

    def post(body: bytes, kind: str) -> bytes:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: {address.target}\r\nContent-Type: {kind}\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        try:
            return connection.send(request)[0]
        except ServerUnavailable:  # the gateway closes what was idle for 5 s, while the other ways took their turns
            return connection.send(request)[0]

    def ask_json(rows: Any) -> Any:
        return json.loads(post(json.dumps({"rows": rows}).encode(), "application/json"))["predictions"]

    def ask_arrow(table: Any) -> Any:
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return pa.ipc.open_stream(post(sink.getvalue(), ARROW)).read_all()

    return {
        "grpc": Way("direct gRPC, dicts", "", dicts, client.predict),
        "json": Way("gateway, JSON", "grpc", dicts, ask_json),
        "grpc_table": Way("direct gRPC, an Arrow table", "", lambda table: table, client.predict),
        "arrow": Way("gateway, Arrow", "grpc_table", lambda table: table, ask_arrow),
    }


@contextmanager
def gateway(url: str, repository: Path, *arguments: str) -> Iterator[tuple[int, psutil.Process]]:
    """`tristage gateway`, as a user starts it: its port and its process."""
    command = [str(Path(sys.executable).with_name("tristage")), "gateway", "--port", "0", "--url", url]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, "--repository", str(repository), *arguments], stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                log.seek(0)
                said = log.read()
                found = re.search(r"gateway +http://\S+:(\d+)", said)
                if found:
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"the gateway did not start: {said}")
                time.sleep(0.1)
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def same(answers: Any, expected: Any, outputs: Sequence[str]) -> bool:
    """Whether two ways answer alike."""
    one, other = (_matrix(each, outputs) for each in (answers, expected))
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=1e-6))


def _matrix(answers: Any, outputs: Sequence[str]) -> Any:
    rows = answers.to_pylist() if isinstance(answers, pa.Table) else answers
    return np.array([[row[name] for name in outputs] for row in rows], np.float64)


def measure(way: Way, requests: Sequence[Any], seconds: float, process: psutil.Process) -> Turn:
    """One turn."""
    for request in requests[-WARM:]:
        way.ask(request)
    took: list[float] = []
    before, until = process.cpu_times(), time.perf_counter() + seconds
    while len(took) < LEAST or time.perf_counter() < until:
        request = requests[len(took) % len(requests)]
        start = time.perf_counter_ns()
        way.ask(request)
        took.append((time.perf_counter_ns() - start) / 1e6)
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return Turn(tuple(took), spent * 1e3 / len(took) if way.direct else 0.0)


Turns = dict[int, dict[str, list[Turn]]]  # batch -> way -> its turns


def run(every: Mapping[str, Way], signature: Signature, table: Any, process: psutil.Process, options: Any) -> Turns:
    """Every way at every batch size, in turns; who begins changes with the turn."""
    found: Turns = {batch: {name: [] for name in every} for batch in BATCHES}
    outputs = [column.name for column in signature.outputs]
    for turn in range(options.turns):
        for batch in BATCHES:
            drawn = [table.take(rows) for rows in draws(len(table), batch, turn)[: max(8, 512 // batch)]]
            order = list(every)
            expected = every["grpc"].ask(dicts(drawn[0]))
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                way = every[name]
                requests = [way.rows(part) for part in drawn]
                if not same(way.ask(requests[0]), expected, outputs):
                    sys.exit(f"{way.title} answers otherwise; nothing was written")
                made = measure(way, requests, options.seconds, process)
                found[batch][name].append(made)
                figures = f"p50 {median(made.took_ms):.3f} ms, the gateway's CPU {made.cpu_ms:.3f} ms"
                print(f"turn {turn + 1}, batch {batch}, {way.title}: {figures}", file=sys.stderr, flush=True)
    return found


def lines(every: Mapping[str, Way], turns: Turns) -> list[dict[str, Any]]:
    """A line for each batch size and way; what is added is the median of the turns' differences."""
    made = []
    for batch, found in turns.items():
        for name, way in every.items():
            took = [each for turn in found[name] for each in turn.took_ms]
            p50, p99 = np.quantile(took, (0.5, 0.99), method="inverted_cdf")
            pairs = zip(found[name], found[way.direct or name], strict=True)
            added = [median(one.took_ms) - median(other.took_ms) for one, other in pairs]
            made.append(
                {
                    "batch": batch,
                    "way": name,
                    "requests": len(took),
                    "p50_ms": float(p50),
                    "p99_ms": float(p99),
                    "added_ms": median(added) if way.direct else None,
                    "gateway_cpu_ms": median(turn.cpu_ms for turn in found[name]) if way.direct else None,
                }
            )
    return made


def table(every: Mapping[str, Way], made: Sequence[Mapping[str, Any]]) -> str:
    """The lines as Markdown."""
    rows = ["| batch | way | requests | p50 ms | p99 ms | ms added | CPU of the gateway, ms a request |"]
    rows.append("|---" * 7 + "|")
    for one in made:
        ends = ["" if one[key] is None else f"{one[key]:.3f}" for key in ("added_ms", "gateway_cpu_ms")]
        title = every[one["way"]].title
        figures = f"{one['requests']:,} | {one['p50_ms']:.3f} | {one['p99_ms']:.3f} | {ends[0]} | {ends[1]}"
        rows.append(f"| {one['batch']} | {title} | {figures} |")
    return "\n".join(rows)


def main() -> None:
    """Measure everything in one run and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each way at each batch size in each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder that gateway.json and .md go to")
    options = parser.parse_args()
    if not (ARTIFACTS / "stack.yaml").is_file():
        parser.error(f"{ARTIFACTS} holds no stack; run: python -m examples.recsys2021.train --size small")
    cores = sorted(os.sched_getaffinity(0))
    core, caller = cores[0], cores[-1]
    repository = exported(ARTIFACTS, ROOT / ".cache" / "single_core" / "small")["fused"]
    signature = read_manifest(repository).signature
    rows = test_rows(ARTIFACTS).select([column.name for column in signature.inputs])
    computer = machine()
    with ExitStack() as opened:
        server = opened.enter_context(serve(repository, cores=[core], http_port=0, grpc_port=0, metrics_port=0))
        os.sched_setaffinity(0, {caller})  # and the gateway, which inherits it
        client = opened.enter_context(Client(server.grpc_url))
        verify(client, repository).check()
        port, process = opened.enter_context(gateway(server.grpc_url, repository))
        every = ways(port, client)
        turns = run(every, signature, rows, process, options)
    made = lines(every, turns)
    json_added = next(one["added_ms"] for one in made if one["way"] == "json" and one["batch"] == 1)
    command = shlex.join(["python", "-m", "benchmarks.gateway", *sys.argv[1:]])
    known = {name: version(name) for name in LIBRARIES}
    date = datetime.now(timezone.utc).isoformat(timespec="minutes")
    text = [
        "# What the gateway adds",
        f"`{command}`, {date[:10]}, {computer['processor']}: the small reference stack, fused, by Triton 2.51 on core "
        f"{core}; the gateway and the caller on core {caller}. {options.turns} turns of {options.seconds:g} s for each "
        "way and batch size, one request on its way, from the caller's rows to the caller's answers. Percentiles are "
        "of all turns; ms added is the median of the turns' differences from the direct way with the same rows.",
        table(every, made),
        f"The bar: JSON adds at most {BAR_MS} ms to one row by p50. It adds {json_added:.3f} ms: "
        f"{'met' if json_added <= BAR_MS else 'missed'}.",
        "All ways answered alike to 1e-6 in every turn, and the golden rows as the training libraries did. "
        + ", ".join(f"{name} {number}" for name, number in known.items())
        + ".",
    ]
    document = {
        "command": command,
        "date": date,
        "machine": computer | {"cores": str(os.cpu_count())},
        "versions": known,
        "bar": {"added_ms": BAR_MS, "measured_ms": json_added, "met": json_added <= BAR_MS},
        "lines": made,
        "turns": {
            str(batch): {name: [_short(turn) for turn in kept] for name, kept in found.items()}
            for batch, found in turns.items()
        },
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gateway.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (options.output / "gateway.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))


def _short(turn: Turn) -> dict[str, float]:
    p50, p99 = np.quantile(turn.took_ms, (0.5, 0.99), method="inverted_cdf")
    return {"requests": len(turn.took_ms), "p50_ms": float(p50), "p99_ms": float(p99), "gateway_cpu_ms": turn.cpu_ms}


if __name__ == "__main__":
    main()
