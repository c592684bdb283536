"""Baseline 3: the stack's preprocessing by Merlin Systems on the same tritonserver, and by tristage, asked alike.

Merlin Systems serves the workflows as they were fitted, under one condition: `TargetEncoding.transform` wants to see
the target columns, so requests carry them, as zeros, which change no answer (the encodings are of one fold). A null
text cannot be sent to it: those are sent as empty texts, and such rows are not compared. Lists come back as their
values and offsets. It needs the environment that `make merlin` makes.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as grpc
from numpy.typing import NDArray

from benchmarks.baselines.figures import Turn, enough
from benchmarks.baselines.process import ROOT, WayFailed
from benchmarks.baselines.rows import draws, test_rows
from benchmarks.merlin_server import python, serve_merlin
from tristage.client._wire import parse_url
from tristage.client.codec import encode
from tristage.columns import NULL_STRING
from tristage.loadtest._process import find_server
from tristage.manifest import read_manifest
from tristage.stack import WorkflowStep

__all__ = ["Preprocessing", "merlin", "workflows"]

MODEL = "executor_model"

# run by the interpreter of Merlin Systems' environment: the folder to export to, saved workflows
EXPORT = """
import functools, operator, sys, nvtabular
from merlin.systems.dag import Ensemble
from merlin.systems.dag.ops.workflow import TransformWorkflow
workflows = [nvtabular.Workflow.load(folder) for folder in sys.argv[2:]]
branches = [each.input_schema.column_names >> TransformWorkflow(each) for each in workflows]
schema = functools.reduce(operator.add, [each.input_schema for each in workflows])
Ensemble(functools.reduce(operator.add, branches), schema).export(sys.argv[1])
"""


class Preprocessing:
    """Triton models that preprocess, and the rows they are asked about."""

    def __init__(self, address: str, models: Sequence[str], repository: Path, artifacts: Path, *, flat: bool) -> None:
        """Connect.

        Args:
            address: of the server's gRPC.
            models: the Triton models, each of which is asked.
            repository: a repository of tristage's, whose signature says what the raw columns are.
            artifacts: the folder of the test rows.
            flat: whether a column is asked for as [rows], not [rows, 1].
        """
        self._client = grpc.InferenceServerClient(address)
        self._flat = flat
        self._signature = read_manifest(repository).signature
        asked = {model: self._client.get_model_metadata(model).inputs for model in models}
        self._inputs = {model: {tensor.name: tensor.datatype for tensor in inputs} for model, inputs in asked.items()}
        self._tensors = self._read(test_rows(artifacts))
        self._processes = psutil.Process(find_server(parse_url(f"grpc://{address}")).pid)

    def _read(self, rows: Any) -> dict[str, NDArray[Any]]:
        """Every row's tensors, as the model asks for them; what the rows lack is a target, and 0."""
        tensors = encode(rows, self._signature, unknown="ignore")
        if self._flat:  # Merlin knows no nulls of texts
            texts = {name: values for name, values in tensors.items() if values.dtype == object}
            tensors |= {name: np.where(values == NULL_STRING, "", values) for name, values in texts.items()}
        kinds = {name: kind for inputs in self._inputs.values() for name, kind in inputs.items()}
        for name in kinds:
            tensors.setdefault(name, np.zeros((len(rows), 1)))
        return {name: tensors[name].astype(_DTYPES[kind], copy=False) for name, kind in kinds.items()}

    def answers(self, rows: Any) -> dict[str, NDArray[Any]]:
        """Scalars that the models make of raw rows, a pyarrow.Table, by name.

        Raises:
            WayFailed: a request failed.
        """
        tensors, found = self._read(rows), {}
        requests = [self._request({n: v[at : at + 500] for n, v in tensors.items()}) for at in range(0, len(rows), 500)]
        for parts in zip(*map(self._infer, requests), strict=True):
            outputs = [output.name for output in parts[0].get_response().outputs]
            scalars = [name for name in outputs if not name.endswith(("__values", "__offsets"))]
            found.update({name: np.concatenate([part.as_numpy(name).ravel() for part in parts]) for name in scalars})
        return found

    def measure(self, batch: int, seconds: float, turn: int) -> Turn:
        """One turn of a closed loop of NVIDIA's client; requests are made before the clock starts.

        Raises:
            WayFailed: a request failed.
        """
        drawn = draws(len(next(iter(self._tensors.values()))), batch, turn)
        requests = [self._request({name: values[rows] for name, values in self._tensors.items()}) for rows in drawn]
        took: list[int] = []
        self._infer(requests[-1])
        before, began = self._cpu(), time.perf_counter()
        while not enough(len(took), time.perf_counter() - began, seconds):
            start = time.perf_counter_ns()
            self._infer(requests[len(took) % len(requests)])
            took.append(time.perf_counter_ns() - start)
        return Turn.of(took, batch, self._cpu() - before)

    def _request(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, list[Any]]:
        """model -> its inputs."""
        return {
            model: [self._input(name, kind, tensors[name]) for name, kind in inputs.items()]
            for model, inputs in self._inputs.items()
        }

    def _input(self, name: str, kind: str, values: NDArray[Any]) -> Any:
        shaped = values.ravel() if self._flat else values
        tensor = grpc.InferInput(name, shaped.shape, kind)
        tensor.set_data_from_numpy(shaped)
        return tensor

    def _infer(self, request: Mapping[str, list[Any]]) -> list[Any]:
        """Ask the models, one after the other."""
        try:
            return [self._client.infer(model, inputs) for model, inputs in request.items()]
        except grpc.InferenceServerException as error:
            raise WayFailed(f"{', '.join(request)}: {error}") from error

    def _cpu(self) -> float:
        """CPU seconds of the server and of what runs below it."""
        times = [process.cpu_times() for process in (self._processes, *self._processes.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    def close(self) -> None:
        """Disconnect; whoever started the server ends it."""
        self._client.close()


_DTYPES = {
    "BOOL": "bool",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BYTES": "object",
}


def workflows(artifacts: Path) -> dict[str, Path]:
    """The steps of a stack that are workflows, and where they were saved."""
    from tristage.export.stack_file import read_stack

    steps = read_stack(artifacts / "stack.yaml").steps
    return {name: Path(step.workflow) for name, step in steps.items() if isinstance(step, WorkflowStep)}


@contextmanager
def merlin(core: int, artifacts: Path, repository: Path, folder: Path) -> Iterator[Preprocessing]:
    """The stack's workflows, exported with Merlin Systems to `folder` and served.

    Raises:
        WayFailed: there is no Merlin Systems, or it cannot export or serve the workflows.
    """
    try:
        interpreter = python()
    except FileNotFoundError as error:
        raise WayFailed(str(error)) from None
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    words = [str(interpreter), "-c", EXPORT, str(folder), *(str(path) for path in workflows(artifacts).values())]
    done = subprocess.run(words, env=quiet, timeout=900, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WayFailed(f"Merlin Systems cannot export the workflows: {_last(done.stderr)}")
    served = serve_merlin(folder, core, ROOT)
    try:
        address = served.__enter__()
    except RuntimeError as error:
        raise WayFailed(f"Merlin Systems cannot serve the workflows: {_last(str(error))}") from None
    try:
        opened = Preprocessing(address, [MODEL], repository, artifacts, flat=True)
        try:
            yield opened
        finally:
            opened.close()
    finally:
        served.__exit__(None, None, None)


def _last(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-2:])
