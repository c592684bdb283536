"""What compiling a workflow saves: NVTabular's transform against the compiled graph, in one process on one core.

`python -m benchmarks.preprocessing` from the repository's root (after `make demo`, which trains the reference stack)
measures a workflow of seven columns (three Categorify, FillMissing and Normalize, three TargetEncoding) and the
reference stack's, checks that both answer the same, and writes results/preprocessing.json and .md.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 64, 1024, 16384)
SECONDS = 3.0  # for each figure
KEYS = 20_000


def seven_columns(folder: Path) -> tuple[Any, Any]:
    """The workflow of seven columns, and rows for it."""
    import nvtabular as nvt
    import pandas as pd
    from merlin.io import Dataset

    random = np.random.default_rng(0)
    count = 200_000
    frame = pd.DataFrame({name: random.zipf(1.2, count) % KEYS for name in ("user", "item", "shop")})
    frame["price"] = np.where(random.random(count) < 0.05, np.nan, random.exponential(10, count))
    frame["click"] = (random.random(count) < 0.2).astype(np.int8)
    keys = ["user", "item", "shop"]
    codes = keys >> nvt.ops.Categorify(out_path=str(folder)) >> nvt.ops.Rename(postfix="_code")
    price = ["price"] >> nvt.ops.FillMissing() >> nvt.ops.Normalize()
    encoded = keys >> nvt.ops.TargetEncoding(["click"], kfold=1, p_smooth=20, out_path=str(folder))
    return nvt.Workflow(codes + price + encoded).fit(Dataset(frame)), frame


def reference_stack(folder: Path) -> tuple[Any, Any]:
    """The reference stack's workflow, and its held-out rows."""
    import nvtabular as nvt
    import pandas as pd

    from examples.recsys2021.train import train

    trained = train()
    return nvt.Workflow.load(trained.folder / "workflow"), pd.read_parquet(trained.folder / "test_rows.parquet")


def compiled(workflow: Any, frame: Any, folder: Path) -> tuple[dict[str, Any], list[str], Callable[[Any], Any]]:
    """The compiled workflow as served and by ONNX Runtime alone, its scalars, and what makes its tensors of rows."""
    from tristage.columns import NULL_STRING
    from tristage.export.repository import save_model
    from tristage.export.workflow import compile_workflow, raw_columns
    from tristage.export.workflow.values import pack
    from tristage.serving.runner import open_folder

    columns = raw_columns(workflow, {}, frozenset(frame.columns[frame.isna().any()]))
    graph = compile_workflow(workflow, columns)
    packed = [
        (f"out_{c.name}", pack(graph.graph, [graph.values[c.name]], c.dtype), c.dtype, c.width) for c in graph.outputs
    ]
    opened = {}
    for way, own in (("served", True), ("onnxruntime", False)):
        (folder / way).mkdir()
        save_model(graph.graph.model(packed), folder / way, None, columns=own)
        opened[way] = open_folder(folder / way)
    asked = {tensor.name for tensor in opened["served"].inputs}
    wanted = [column for column in columns if column.name in asked]

    def tensors(rows: Any) -> dict[str, Any]:
        made = {}
        for column in wanted:
            values = rows[column.name]
            if column.dtype == "string":
                values = values.where(values.notna(), NULL_STRING)
            made[column.name] = values.to_numpy(column.numpy_dtype).reshape(-1, 1)
        return made

    return opened, [column.name for column in graph.outputs if column.length is None], tensors


def call_ms(work: Callable[[], Any]) -> float:
    """Median milliseconds of a call, over SECONDS or at least three calls."""
    times: list[float] = []
    work()
    while sum(times) < SECONDS or len(times) < 3:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)


def measure(name: str, workflow: Any, frame: Any, folder: Path) -> list[dict[str, Any]]:
    """All three, batch by batch, after checking that they answer the same."""
    opened, scalars, tensors = compiled(workflow, frame, folder)
    made = workflow.transform(frame.iloc[:2000].reset_index(drop=True))
    for way in opened.values():
        answers = way.run(tensors(frame.iloc[:2000]))
        for column in scalars:
            values = answers[f"out_{column}"][:, 0]
            np.testing.assert_allclose(values, made[column], rtol=1e-6, atol=1e-6, equal_nan=True)
    results = []
    for batch in BATCHES:
        rows = frame.iloc[np.arange(batch) % len(frame)].reset_index(drop=True)
        feed = tensors(rows)
        ways: dict[str, Callable[[], Any]] = {"nvtabular": lambda: workflow.transform(rows)}  # noqa: B023
        ways |= {way: lambda way=way: opened[way].run(feed) for way in opened}  # type: ignore[misc]  # noqa: B023
        took = {f"{way}_ms": call_ms(work) for way, work in ways.items()}
        ratio = took["nvtabular_ms"] / took["served_ms"]
        results.append({"workflow": name, "batch": batch, **took, "ratio": ratio})
        print(f"{name}, batch {batch}: {took}, {ratio:.0f} times", flush=True)
    return results


def main() -> None:
    """Measure both workflows in one run and write the results."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    warnings.simplefilter("ignore")
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for name, make in (("seven columns", seven_columns), ("recsys2021", reference_stack)):
            (Path(folder) / name).mkdir()
            results += measure(name, *make(Path(folder)), Path(folder) / name)
    versions = ", ".join(f"{library} {version(library)}" for library in ("nvtabular", "pandas", "onnxruntime"))
    heads = ("workflow", "batch", "NVTabular", "compiled, ONNX Runtime alone", "compiled, as served", "ratio")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [
        f"| {r['workflow']} | {r['batch']} | {r['nvtabular_ms']:.2f} | {r['onnxruntime_ms']:.3f} "
        f"| {r['served_ms']:.3f} | {r['ratio']:.0f} |"
        for r in results
    ]
    text = [
        "# Preprocessing: NVTabular's transform against the compiled workflow",
        f"`python -m benchmarks.preprocessing`, {datetime.now(timezone.utc):%Y-%m-%d}, {platform.machine()}, one core, "
        "one thread, in process, rows already in each one's own form (a DataFrame, tensors); milliseconds a call, "
        "median of calls; ratio: NVTabular over as served, which is ONNX Runtime for texts and the columns engine. "
        f"{versions}.",
        "\n".join(lines),
        "All answered the same on 2,000 rows in this run, to 1e-6.",
    ]
    (RESULTS / "preprocessing.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    (RESULTS / "preprocessing.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
