"""Preprocessing through Triton: served by Merlin Systems 23.8, and by tristage, on the same tritonserver and one core.

`python -m benchmarks.merlin` from the repository's root (after `make install merlin`) exports each workflow with Merlin
Systems, carries that folder over with `Stack.from_merlin`, serves the two one after the other, checks that they answer
the same, and writes results/merlin.json and .md. The client runs on another core where there is one.

Merlin Systems cannot serve TargetEncoding: without the target column, which no request has, its transform fails. So the
seven columns are measured with each TargetEncoding as the JoinExternal of its own statistics, filled with the mean,
which answers the same and is what Merlin can serve; and tristage alone with TargetEncoding itself.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

from benchmarks.merlin_server import python, serve_merlin
from benchmarks.preprocessing import seven_columns

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 64, 1024)
SECONDS = 5.0  # for each figure
ROWS = 2000  # answers compared
KEYS = ["user", "item", "shop"]

# run by the interpreter of Merlin Systems' environment: a saved workflow, the folder to export to
EXPORT = """
import sys, nvtabular
from merlin.systems.dag import Ensemble
from merlin.systems.dag.ops.workflow import TransformWorkflow
workflow = nvtabular.Workflow.load(sys.argv[1])
columns = workflow.input_schema.column_names
Ensemble(columns >> TransformWorkflow(workflow), workflow.input_schema).export(sys.argv[2])
"""


def servable(frame: Any, folder: Path, *, encoded: bool) -> Any:
    """The workflow of seven columns as Merlin can serve it; without `encoded`, its first four."""
    import nvtabular as nvt
    from merlin.io import Dataset

    codes = KEYS >> nvt.ops.Categorify(out_path=str(folder)) >> nvt.ops.Rename(postfix="_code")
    columns = codes + (["price"] >> nvt.ops.FillMissing() >> nvt.ops.Normalize() >> nvt.ops.Rename(postfix="_scaled"))
    mean = float(frame["click"].mean())
    for key in KEYS if encoded else ():
        groups = frame.groupby(key)["click"]
        smooth = (groups.sum() + 20 * mean) / (groups.count() + 20)
        name = f"TE_{key}_click"
        table = smooth.astype(np.float32).rename(name).reset_index()
        joined = [key] >> nvt.ops.JoinExternal(table, on=[key], columns_ext=[key, name])
        columns = columns + (joined[name] >> nvt.ops.FillMissing(mean))
    return nvt.Workflow(columns).fit(Dataset(frame[[*KEYS, "price"]]))


def tensors(rows: Any, dimensions: int) -> list[Any]:
    """A request's inputs: Merlin takes [rows], tristage [rows, 1]."""
    inputs = []
    for name in (*KEYS, "price"):
        values = rows[name].to_numpy().reshape((-1,) + (1,) * (dimensions - 1))
        tensor = grpc.InferInput(name, values.shape, "FP64" if name == "price" else "INT64")
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def measure(address: str, model: str, frame: Any, dimensions: int) -> tuple[dict[str, Any], dict[int, float]]:
    """Answers for ROWS rows, and the median milliseconds of a request, batch by batch."""
    with grpc.InferenceServerClient(address) as client:
        outputs = [output.name for output in client.get_model_metadata(model).outputs]
        whole = [client.infer(model, tensors(frame.iloc[at : at + 1000], dimensions)) for at in range(0, ROWS, 1000)]
        answers = {name: np.concatenate([part.as_numpy(name).ravel() for part in whole]) for name in outputs}
        medians = {}
        for batch in BATCHES:
            inputs = tensors(frame.iloc[:batch], dimensions)
            client.infer(model, inputs)
            times: list[float] = []
            while sum(times) < SECONDS:
                start = time.perf_counter()
                client.infer(model, inputs)
                times.append(time.perf_counter() - start)
            medians[batch] = float(np.median(times) * 1e3)
            print(f"  {model}, batch {batch}: {medians[batch]:.2f} ms ({len(times)} requests)")
    return answers, medians


def by_merlin(repository: Path, frame: Any, core: int) -> tuple[dict[str, Any], dict[str, dict[int, float]]]:
    """Merlin Systems: the executor model, which clients call, and the workflow model behind it, called by itself."""
    with serve_merlin(repository, core) as address:
        answers, executor = measure(address, "executor_model", frame, 1)
        _, workflow = measure(address, "0_transformworkflowtriton", frame, 1)
    return answers, {"executor model": executor, "workflow model": workflow}


def by_tristage(stack: Any, repository: Path, frame: Any, core: int) -> tuple[dict[str, Any], dict[int, float]]:
    """The same, exported and served by tristage."""
    from tristage.export import export
    from tristage.serving import serve

    export(stack, repository, trust=True)
    with serve(repository, cores=[core], http_port=0, grpc_port=0, metrics_port=0) as server:
        return measure(server.grpc_url.removeprefix("grpc://"), stack.name, frame, 2)


def compare(name: str, workflow: Any, frame: Any, folder: Path, core: int) -> list[dict[str, Any]]:
    """One workflow, served by both."""
    from tristage.stack import Stack

    folder.mkdir()
    workflow.save(str(folder / "workflow"))
    golden = folder / "golden.parquet"
    frame.iloc[:ROWS][[*KEYS, "price"]].to_parquet(golden)
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    exported = [str(folder / "workflow"), str(folder / "merlin")]
    subprocess.run([python(), "-c", EXPORT, *exported], check=True, env=quiet, timeout=600, capture_output=True)
    print(name)
    expected, merlin = by_merlin(folder / "merlin", frame, core)
    stack = Stack.from_merlin(folder / "merlin", golden=golden, trust=True)
    answers, tristage = by_tristage(stack, folder / "tristage", frame, core)
    assert sorted(answers) == sorted(expected)
    for column, values in expected.items():
        np.testing.assert_allclose(answers[column], values, rtol=1e-5, atol=1e-5, equal_nan=True)
    return [result(name, batch, merlin, tristage) for batch in BATCHES]


def result(name: str, batch: int, merlin: Mapping[str, Mapping[int, float]], tristage: Mapping[int, float]) -> Any:
    """One line of the table; the ratio is to what Merlin's clients call."""
    return {
        "workflow": name,
        "batch": batch,
        **{f"merlin_{kind.replace(' ', '_')}_ms": figures[batch] for kind, figures in merlin.items()},
        "tristage_ms": tristage[batch],
        **({"ratio": merlin["executor model"][batch] / tristage[batch]} if merlin else {}),
        **({"ratio_to_workflow_model": merlin["workflow model"][batch] / tristage[batch]} if merlin else {}),
    }


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| workflow | batch | Merlin's executor model, ms | Merlin's workflow model, ms | tristage, ms | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        merlin = "cannot be served | |"
        if "ratio" in r:
            merlin = f"{r['merlin_executor_model_ms']:.2f} | {r['merlin_workflow_model_ms']:.2f} |"
        ratios = f"{r['ratio']:.1f}, {r['ratio_to_workflow_model']:.1f}" if "ratio" in r else ""
        lines.append(f"| {r['workflow']} | {r['batch']} | {merlin} {r['tristage_ms']:.2f} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every workflow in one run and write the results."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    warnings.simplefilter("ignore")
    from tristage.stack import Stack, WorkflowStep

    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        encoding, frame = seven_columns(folder / "seven")
        workflows = {
            "four columns": servable(frame, folder / "four", encoded=False),
            "seven columns, JoinExternal for TargetEncoding": servable(frame, folder / "joined", encoded=True),
        }
        os.sched_setaffinity(0, set(cores[1:]) or cores)  # the client keeps off the server's core
        results = []
        for number, (name, workflow) in enumerate(workflows.items()):
            results += compare(name, workflow, frame, folder / str(number), cores[0])
        names = encoding.output_schema.column_names
        outputs = {f"out_{column}": f"features.{column}" for column in names if column != "click"}
        stack = Stack(name="seven", steps={"features": WorkflowStep(encoding)}, outputs=outputs)
        name = "seven columns, TargetEncoding"
        print(name)
        _, figures = by_tristage(stack, folder / "encoded", frame, cores[0])
        results += [result(name, batch, {}, figures) for batch in BATCHES]
    versions = ", ".join(f"{library} {version(library)}" for library in ("nvtabular", "pandas", "onnxruntime"))
    where = "another core" if len(cores) > 1 else "the same core"
    text = [
        "# Preprocessing through Triton: Merlin Systems 23.8 against tristage",
        f"`python -m benchmarks.merlin`, {datetime.now(timezone.utc):%Y-%m-%d}, {platform.machine()}: tritonserver "
        f"2.51 pinned to one core with one thread a pool, one gRPC client on {where} with one request on its way; "
        f"median of the requests of {SECONDS:g} s. merlin-systems 23.8.0, {versions}.",
        table(results),
        "Four columns: three Categorify, FillMissing and Normalize. Seven: three TargetEncoding as well, which Merlin "
        "Systems cannot serve (without the target its transform fails); JoinExternal of the same statistics and "
        "FillMissing stand for it. The executor model is what a client of Merlin Systems calls; the workflow model is "
        "behind it, and can be called by itself. The ratio is to each of the two. Answers were equal to 1e-5 on "
        f"{ROWS:,} rows in this run.",
    ]
    (RESULTS / "merlin.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    (RESULTS / "merlin.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
