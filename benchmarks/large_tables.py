"""A table of 20 million keys with 40 statistics: exported, loaded, looked up.

`python -m benchmarks.large_tables` from the repository's root makes a fitted JoinGroupby of that size (a small one,
whose file of statistics is replaced by one of random numbers), exports it, serves it with one instance and with two,
and measures; `--keys 1000000` makes a smaller one. Each export runs in a process of its own, whose memory is watched.
Needs 8 GB of disk for each kind of key, one after the other, and leaves nothing but results/large_tables.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

RESULTS = Path(__file__).parent / "results"
CHUNK = 1 << 18
COLUMNS = 20  # two statistics each
BATCHES = (1, 1024)
SECONDS = 5.0


def user_ids(kind: str, numbers: np.ndarray) -> Any:
    """The users' ids: whole numbers far apart, or 32 hexadecimal digits."""
    ids = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    if kind == "int64":
        return ids.view(np.int64)
    return [f"{high:016X}{low:016X}" for high, low in zip(ids.tolist(), (ids * ids).tolist(), strict=True)]


def fit(kind: str, keys: int, folder: Path) -> list[str]:
    """Save a workflow of one JoinGroupby in `folder` / workflow, its statistics of `keys` keys; returns its columns."""
    import nvtabular as nvt
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    from merlin.io import Dataset

    inputs = [f"x{number}" for number in range(COLUMNS)]
    frame = pd.DataFrame({"user": user_ids(kind, np.arange(8)), **{name: np.ones(8, np.float32) for name in inputs}})
    nodes = ["user"] >> nvt.ops.JoinGroupby(cont_cols=inputs, stats=["mean", "std"], out_path=str(folder))
    workflow = nvt.Workflow(nodes).fit(Dataset(frame))
    workflow.save(folder / "workflow")
    table = folder / "workflow" / "categories" / "cat_stats.user.parquet"
    names = [name for name in pq.read_table(table).schema.names if name.startswith("user_")]
    shutil.rmtree(table)
    random = np.random.default_rng(0)
    kinds = pa.int64() if kind == "int64" else pa.string()
    schema = pa.schema([("user", kinds), *((name, pa.float32()) for name in names)])
    with pq.ParquetWriter(table, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, keys, CHUNK):
            numbers = np.arange(start, min(start + CHUNK, keys))
            values = random.random((len(names), len(numbers)), np.float32)
            writer.write_table(pa.table([pa.array(user_ids(kind, numbers), kinds), *values], schema=schema))
    return names


EXPORT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import nvtabular
from tristage.export import export
from tristage.stack import Stack, WorkflowStep
folder, names, instances = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
stack = Stack("large", {"features": WorkflowStep(folder / "workflow")}, {f"o{n}": f"features.{n}" for n in names})
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter()
export(stack, folder / f"repository{instances}", trust=True, instances=instances)
print(time.perf_counter() - start)
"""


def export(folder: Path, names: list[str], instances: int) -> dict[str, float]:
    """Export in a process of its own: seconds, and MB of memory at most above what importing the libraries took."""
    argv = [sys.executable, "-c", EXPORT, str(folder), json.dumps(names), str(instances)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before, peak, done = memory_mb(process.pid)["anonymous"], [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.02) and psutil.pid_exists(process.pid):
                peak[0] = max(peak[0], memory_mb(process.pid)["anonymous"])

        watcher = threading.Thread(target=watch)
        watcher.start()
        process.stdin.write("\n")
        process.stdin.flush()
        seconds = float(process.stdout.readline())
        done.set()
        watcher.join()
    return {"export_s": seconds, "export_peak_mb": peak[0] - before}


def memory_mb(pid: int) -> dict[str, float]:
    """MB a process holds: its own (anonymous), and its share of all (a page that two processes map counts half)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {"anonymous": 0.0, "share": 0.0}
    said = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return {"anonymous": said["Anonymous"], "share": said["Pss"]}


def serve_and_weigh(repository: Path, keys: Any, kind: str, cores: list[int]) -> dict[str, float]:
    """Start Triton, ask for many users, and weigh the processes that hold the model."""
    import pandas as pd

    from tristage.client import Client
    from tristage.serving import serve

    start = time.perf_counter()
    with serve(repository, cores=cores, http_port=0, grpc_port=0, metrics_port=0) as server:
        ready = time.perf_counter() - start
        with Client(server.grpc_url) as client:
            for part in np.array_split(np.arange(len(keys)), 64):
                client.predict(pd.DataFrame({"user": [keys[at] for at in part]}), unknown="ignore")
        stubs = [p for p in psutil.Process(server.pid).children(recursive=True) if "stub" in p.name()]
        weights = [memory_mb(stub.pid) for stub in stubs]
    return {
        "ready_s": ready,
        "stubs": len(stubs),
        "anonymous_mb": sum(w["anonymous"] for w in weights),
        "share_mb": sum(w["share"] for w in weights),
    }


def look_ups(repository: Path, kind: str, keys: int) -> dict[str, float]:
    """Open the graph in this process, on one core, and look random users up."""
    from tristage.serving.graph import Graph

    (file,) = repository.glob("*/1/graph.onnx")
    start = time.perf_counter()
    graph = Graph.open(file)
    made = {"open_s": time.perf_counter() - start}
    random = np.random.default_rng(1)
    for batch in BATCHES:
        feeds = []
        for _ in range(200):
            ids = user_ids(kind, random.integers(0, keys, batch))
            array = ids if kind == "int64" else np.array(ids, object)
            feeds.append({"user": array.reshape(-1, 1)})
        for feed in feeds:
            graph.run(feed)
        calls, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < SECONDS:
            graph.run(feeds[calls % len(feeds)])
            calls += 1
        made[f"look_ups_a_second_{batch}"] = calls * batch / (time.perf_counter() - begun)
    return made


def measure(kind: str, keys: int) -> dict[str, Any]:
    """Everything for one kind of key."""
    with tempfile.TemporaryDirectory(prefix="large-tables-") as place:
        folder = Path(place)
        names = fit(kind, keys, folder)
        made: dict[str, Any] = {"key": kind, "keys": keys, "statistics": len(names)}
        print(f"{kind}: fitted", flush=True)
        made.update(export(folder, names, 1))
        made["repository_mb"] = sum(p.stat().st_size for p in (folder / "repository1").rglob("*") if p.is_file()) / 1e6
        print(made, flush=True)
        asked = user_ids(kind, np.random.default_rng(2).integers(0, keys, 200_000))
        made["instances"] = [serve_and_weigh(folder / "repository1", asked, kind, [0])]
        made.update(look_ups(folder / "repository1", kind, keys))
        second = export(folder, names, 2)
        made["export_again_s"] = second["export_s"]
        made["instances"].append(serve_and_weigh(folder / "repository2", asked, kind, [0, 1]))
    print(made, flush=True)
    return made


def main() -> None:
    """Measure both kinds of key and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=20_000_000)
    given = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore")
    results = [measure(kind, given.keys) for kind in ("int64", "text")]
    rows = {
        "export, s": lambda r: f"{r['export_s']:.0f}",
        "memory of its own that export took, at most, MB": lambda r: f"{r['export_peak_mb']:.0f}",
        "repository, MB": lambda r: f"{r['repository_mb']:.0f}",
        "opening the graph, s": lambda r: f"{r['open_s']:.3f}",
        "Triton ready, 1 instance / 2, s": lambda r: " / ".join(f"{i['ready_s']:.1f}" for i in r["instances"]),
        "runners' own memory, 1 instance / 2, MB": lambda r: " / ".join(
            f"{i['anonymous_mb']:.0f}" for i in r["instances"]
        ),
        "runners' memory with the pages they share, 1 / 2, MB": lambda r: " / ".join(
            f"{i['share_mb']:.0f}" for i in r["instances"]
        ),
        "look-ups a second on one core, batch 1": lambda r: f"{r['look_ups_a_second_1']:,.0f}",
        "look-ups a second on one core, batch 1024": lambda r: f"{r['look_ups_a_second_1024']:,.0f}",
    }
    lines = [
        "| | " + " | ".join(f"{r['keys']:,} {r['key']} keys" for r in results) + " |",
        "|---|" + "---|" * len(results),
    ]
    lines += [f"| {name} | " + " | ".join(say(r) for r in results) + " |" for name, say in rows.items()]
    text = [
        "# A large table",
        f"`python -m benchmarks.large_tables`, {datetime.now(timezone.utc):%Y-%m-%d}, {platform.machine()}, "
        f"{os.cpu_count()} cores. One key column, {results[0]['statistics']} float32 statistics a key; a look-up finds "
        "the key and reads them all. Text keys are 32 hexadecimal digits. Look-ups are of random keys, in process, one "
        "thread; the table is in the page cache. nvtabular "
        f"{version('nvtabular')}, onnxruntime {version('onnxruntime')}.",
        "\n".join(lines),
        "Own memory is what a process shares with nobody. Of pages that several runners map, each is counted its "
        "share, so the sum is what they hold together; 200,000 users were asked for before weighing.",
    ]
    (RESULTS / "large_tables.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    (RESULTS / "large_tables.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
