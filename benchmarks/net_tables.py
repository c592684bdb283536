"""What exporting and serving a net with a large embedding costs: seconds, and memory beside the table itself.

`python -m benchmarks.net_tables` from the repository's root makes a net with a table of 2,000,000 x 128 numbers in
PyTorch and in Keras, exports each from memory and from its file, opens what was exported once and twice in one process,
and writes results/net_tables.json and results/net_tables.md.

Memory: the most a process of its own ever had resident (VmHWM), and what it had before the export began, libraries and
net included; pages of mapped files count (they are shared, and the system may drop them).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
ROWS, WIDTH = 2_000_000, 128
TABLE_MB = ROWS * WIDTH * 4 / 1e6


def memory(field: str) -> float:
    """A field of this process's status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(field)


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def torch_net(rows: int) -> Any:
    """An ExportedProgram: user [rows] int64, numeric [rows, 4] float32 -> [rows, 1]."""
    import torch
    from torch import nn

    class Net(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.users = nn.Embedding(rows, WIDTH, _weight=torch.rand(rows, WIDTH))
            self.top = nn.Linear(WIDTH + 4, 1)

        def forward(self, user: Any, numeric: Any) -> Any:
            return torch.sigmoid(self.top(torch.cat([self.users(user), numeric], 1)))

    batch = torch.export.Dim("rows", min=1, max=65536)
    examples = (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4))
    return torch.export.export(Net().eval(), examples, dynamic_shapes=({0: batch}, {0: batch}))


def keras_net(rows: int) -> Any:
    """The same in Keras."""
    import keras

    user, numeric = keras.Input((), dtype="int64", name="user"), keras.Input((4,), name="numeric")
    wide = keras.layers.Concatenate()([keras.layers.Embedding(rows, WIDTH)(user), numeric])
    return keras.Model([user, numeric], keras.layers.Dense(1, "sigmoid")(wide))


def artifact(framework: str, place: str, folder: Path, rows: int) -> Any:
    """The net in memory, or the path of its file."""
    net = (torch_net if framework == "torch" else keras_net)(rows)
    if place == "memory":
        return net
    path = folder / {"torch": "net.pt2", "keras": "net.keras"}[framework]
    if framework == "torch":
        import torch

        torch.export.save(net, path)
    elif place == "SavedModel":
        path = folder / "net.savedmodel"
        net.export(path, verbose=False)
    else:
        net.save(path)
    return path


def golden(path: Path) -> None:
    """Fifty rows to prove the export with."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    columns = {"user": draw.integers(0, ROWS, 50), **{f"n{i}": draw.random(50, np.float32) for i in range(4)}}
    pq.write_table(pa.table(columns), path)


def child(framework: str, artifact_path: str, repository: str, rows: int) -> None:
    """Export in this process and print what it took."""
    from tristage.export import export

    folder = Path(repository).parent
    net = (torch_net if framework == "torch" else keras_net)(rows) if artifact_path == "memory" else Path(artifact_path)
    # what the libraries take to load is not the export's
    export(
        _stack("warm", (torch_net if framework == "torch" else keras_net)(100), folder), folder / "warm", overwrite=True
    )
    before = memory("VmRSS")
    forget_peak()
    start = time.perf_counter()
    made = export(_stack("big", net, folder), repository)
    seconds = time.perf_counter() - start
    assert made.parity is not None
    furthest = max(made.parity.differences.values())
    print(json.dumps({"seconds": seconds, "before": before, "peak": memory("VmHWM"), "furthest": furthest}))


def _stack(name: str, net: Any, folder: Path) -> Any:
    from tristage.stack import NetStep, Stack

    rows = "golden.parquet" if name == "big" else "none.parquet"
    reads = {"user": ("user",), "numeric": ("n0", "n1", "n2", "n3")}
    if name == "warm":
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"user": np.arange(5), **{f"n{i}": np.zeros(5, np.float32) for i in range(4)}}
        pq.write_table(pa.table(columns), folder / rows)
    return Stack(name, {"net": NetStep(net, reads)}, {"score": "net.score"}, golden=folder / rows)


def opened(repository: str, instances: int) -> None:
    """Open the exported net so many times in this process, ask each about every user, and print the memory."""
    from tristage.serving.runner import open_folder

    before = memory("VmRSS"), memory("RssAnon")
    (folder,) = (path for path in Path(repository).iterdir() if (path / "1" / "graph.onnx").is_file())
    graphs = [open_folder(folder / "1") for _ in range(instances)]
    for graph in graphs:
        for start in range(0, ROWS, 20_000):
            users = np.arange(start, start + 20_000, dtype=np.int64)[:, None]
            graph.run({"user": users, **{f"n{i}": np.zeros((20_000, 1), np.float32) for i in range(4)}})
    after = memory("VmRSS"), memory("RssAnon")
    print(json.dumps({"resident": after[0] - before[0], "own": after[1] - before[1]}))


def reading(path: str) -> None:
    """What Keras alone takes to read its file."""
    import keras

    keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    before = memory("VmRSS")
    start = time.perf_counter()
    keras.saving.load_model(path, compile=False)
    print(json.dumps({"seconds": time.perf_counter() - start, "before": before, "peak": memory("VmHWM")}))


def ask(*arguments: object) -> dict[str, Any]:
    """Run this module's child in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.net_tables", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, and write the results."""
    exports, serving = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        golden(folder / "golden.parquet")
        for framework in ("torch", "keras"):
            for place in ("memory", "file", *(["SavedModel"] if framework == "keras" else [])):
                given = "memory" if place == "memory" else ask("save", framework, place, folder)["path"]
                repository = folder / f"{framework}-{place}"
                exports[f"{framework}, {place}"] = ask("export", framework, given, repository)
                print(framework, place, exports[f"{framework}, {place}"])
            if framework == "keras":
                read = ask("read", folder / "net.keras")
            for instances in (1, 2):
                serving[f"{framework}, {instances}"] = ask("open", folder / f"{framework}-memory", instances)
                print(framework, instances, serving[f"{framework}, {instances}"])
    document = {
        "created": time.strftime("%Y-%m-%d"),
        "table_mb": TABLE_MB,
        "exports": exports,
        "serving": serving,
        "keras_reads": read,
    }
    (RESULTS / "net_tables.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = [
        "# A net with a table of 2,000,000 x 128 numbers",
        f"`python -m benchmarks.net_tables`, {document['created']}. The table is {TABLE_MB:.0f} MB. Memory of a "
        "process of its own, in MB of 10^6 bytes.",
        "| exported from | seconds | resident before | most resident during | furthest off |\n|---|---|---|---|---|\n"
        + "\n".join(
            f"| {case} | {v['seconds']:.1f} | {v['before']:.0f} | {v['peak']:.0f} | {v['furthest']:.1e} |"
            for case, v in exports.items()
        ),
        f'Of "keras, file", Keras takes {read["seconds"]:.1f} s to read its own file, and has {read["peak"]:.0f} MB '
        "resident meanwhile. Exported from memory, the net is among what was resident before. Golden rows are answered "
        "by the framework and by the exported graph, and files are checksummed, within these seconds.",
        "| opened | more resident | of it the process's own |\n|---|---|---|\n"
        + "\n".join(f"| {case} | {v['resident']:.0f} | {v['own']:.0f} |" for case, v in serving.items()),
        "Each instance looked up every row. What is not the process's own are pages of the mapped file, which all "
        "instances on a machine share; a second instance in the same process maps them again, and so they count twice "
        "in resident memory, and once in the machine's.",
    ]
    (RESULTS / "net_tables.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["export", framework, given, repository]:
            child(framework, given, repository, ROWS)
        case ["save", framework, place, folder]:
            print(json.dumps({"path": str(artifact(framework, place, Path(folder), ROWS))}))
        case ["read", path]:
            reading(path)
        case ["open", repository, instances]:
            opened(repository, int(instances))
        case _:
            main()
