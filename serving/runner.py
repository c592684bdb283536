"""What a step's model.py names: runs the step's lowered graph, or its workflow, inside Triton's Python backend."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import RepositoryError
from tristage.serving.device_frames import DeviceFrames
from tristage.serving.graph import GraphError, Runnable, Tensor, decode
from tristage.serving.interpreted import Interpreter
from tristage.serving.program import open_compiled
from tristage.serving.workflow_file import TRUST, WORKFLOW_FILE, WorkflowFile

__all__ = ["TABLE_BYTES", "TritonPythonModel"]

TABLE_BYTES = (
    "TRISTAGE_TABLE_BYTES"  # in the environment: what large tables may take of a GPU; else most of what is free
)

Tensors = dict[str, NDArray[Any]]


class TritonPythonModel:
    """Opens what lies in the model's version folder; evaluates all requests it is handed at once."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graph or the workflow and compare it with the model's configuration.

        Raises:
            GraphError: it cannot be opened or has other tensors than config.pbtxt; the model does not load.
        """
        self._triton: Any = importlib.import_module("triton_python_backend_utils")  # exists only inside Triton
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        said = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        self._graph = open_on_device(folder, said, args) if "device" in said else open_folder(folder)
        its = self._graph.frames if isinstance(self._graph, Interpreter) else None
        self._frames = its if isinstance(its, DeviceFrames) else None  # else tensors are NumPy's
        self._tables = table_counters(self._triton, self._graph)
        check_config(self._graph, config)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request, in order; one that fails gets an error of its own."""
        answers = evaluate(self._graph, [_read(self._graph, request, self._frames) for request in requests])
        self._tables()
        return [self._respond(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def _respond(self, request: Any, answer: Tensors | GraphError) -> Any:
        if isinstance(answer, GraphError):
            return self._triton.InferenceResponse(output_tensors=[], error=self._triton.TritonError(str(answer)))
        wanted = set(request.requested_output_names())
        return self._triton.InferenceResponse(
            output_tensors=[self._tensor(name, array) for name, array in answer.items() if name in wanted]
        )

    def _tensor(self, name: str, array: Any) -> Any:
        if self._frames is not None:
            return self._frames.given(self._triton, name, array)
        return self._triton.Tensor(name, array)


def read(
    graph: Runnable, given: Mapping[str, Any], array: Callable[[Tensor, Any], NDArray[Any]]
) -> Tensors | GraphError:
    """A request's inputs as arrays, or the error it ends with.

    Args:
        graph: says which inputs there are.
        given: what the request holds, by name.
        array: makes an array of an input and of what the request holds for it.
    """
    tensors = {}
    try:
        for tensor in graph.inputs:
            if tensor.name not in given:
                raise GraphError(f"input {tensor.name} is missing")
            tensors[tensor.name] = array(tensor, given[tensor.name])
    except GraphError as error:
        return error
    except Exception as error:  # whatever one request holds must not take the others with it
        return GraphError(f"the request cannot be read: {error}")
    return tensors


def _read(graph: Runnable, request: Any, frames: DeviceFrames | None) -> Tensors | GraphError:
    def array(tensor: Tensor, held: Any) -> NDArray[Any]:
        if frames is not None and tensor.dtype != object:
            return frames.taken(held)  # type: ignore[no-any-return]
        values: NDArray[Any] = held.as_numpy()
        return decode(values, tensor.name) if tensor.dtype == object else values

    return read(graph, {held.name(): held for held in request.inputs()}, array)  # by name, Triton lists all each time


def open_folder(folder: Path) -> Runnable:
    """Open a model's version folder.

    Raises:
        GraphError: what lies there cannot be opened, or is a workflow and nobody has said that it may be read.
    """
    file = folder / WORKFLOW_FILE
    threads = int(os.environ.get("TRISTAGE_THREADS", "1"))
    if not file.is_file():
        return open_compiled(folder, threads)
    return open_workflow(file, None)


def open_workflow(file: Path, device: str | None) -> Interpreter:
    """Open the workflow that a `workflow.json` names.

    Args:
        file: the `workflow.json`.
        device: where NVTabular computes, as `DeviceFrames.open` takes it; None for pandas, and for Triton tensors that
            are NumPy's.

    Raises:
        GraphError: it cannot be opened, or nobody has said that it may be read.
    """
    if os.environ.get(TRUST) != "1":
        raise GraphError(
            f"{file} names a saved workflow, a pickle, and reading one runs it: tristage serve --trust allows that "
            f"(elsewhere, {TRUST}=1 in the environment)"
        )
    try:
        return Interpreter.open(WorkflowFile.read(file), None if device is None else DeviceFrames.open(device))
    except RepositoryError as error:
        raise GraphError(str(error)) from error


def open_on_device(folder: Path, said: Mapping[str, str], args: Mapping[str, str]) -> Runnable:
    """Open a model's version folder on the GPU that Triton gives the instance.

    Args:
        folder: the version's.
        said: the configuration's parameters: "device", torch's name of one, and "cuda_graphs", whether calls of few
            rows are replayed.
        args: what Triton says of the instance.

    Raises:
        GraphError: torch, or for a workflow cuDF, is not installed, the GPU cannot be used, or what lies there cannot
            be opened.
    """
    device = said["device"]
    if device == "cuda":
        device = f"cuda:{args['model_instance_device_id']}"
    if (folder / WORKFLOW_FILE).is_file():
        return open_workflow(folder / WORKFLOW_FILE, device)
    try:
        from tristage.serving.device.program import DeviceProgram
    except ModuleNotFoundError as error:
        raise GraphError(
            f"{error.name} is not installed; a model on a GPU needs pip install 'tristage[gpu]'"
        ) from error
    threads, memory = os.environ.get("TRISTAGE_THREADS", "1"), os.environ.get(TABLE_BYTES)
    return DeviceProgram.open(
        folder,
        device,
        cuda_graphs=said.get("cuda_graphs") != "0",
        memory=None if memory is None else int(memory),
        threads=int(threads),
    )


def table_counters(triton: Any, graph: Runnable) -> Callable[[], None]:
    """What brings the counts of tables that are not whole on a GPU up to date in Triton's metrics."""
    budget = getattr(graph, "budget", None)
    if budget is None or not budget.hot:
        return lambda: None
    kind = triton.MetricFamily.COUNTER
    about = {
        "tristage_table_rows_asked": "Rows asked of tables that are not whole on the GPU",
        "tristage_table_rows_on_gpu": "Those of them that lay on the GPU",
    }
    families = [triton.MetricFamily(name=name, description=text, kind=kind) for name, text in about.items()]
    counters = [
        [family.Metric(labels={"table": str(number)}) for family in families] for number in range(len(budget.hot))
    ]

    def update() -> None:
        assert families  # they have to outlive their counters
        for table, (asked, found) in zip(budget.hot, counters, strict=True):
            asked.increment(table.asked - asked.value())
            found.increment(table.found - found.value())

    return update


def check_config(graph: Runnable, config: Mapping[str, Any]) -> None:
    """Compare a graph with a model configuration.

    Raises:
        GraphError: they name other inputs or outputs, or give one another type.
    """
    for side, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        have = {tensor.name: tensor.triton_type for tensor in tensors}
        said = {entry["name"]: entry["data_type"] for entry in config[side]}
        fits = said == have if side == "input" else said.items() <= have.items()  # an output may go unread
        if not fits:
            raise GraphError(f"config.pbtxt and the model differ in their {side}s: {said} against {have}")


def evaluate(graph: Runnable, requests: Sequence[Tensors | GraphError]) -> list[Tensors | GraphError]:
    """Evaluate a graph, or a workflow, once for many requests.

    Args:
        graph: what to evaluate.
        requests: inputs of each request, [rows, k] with rows of its own; or the error it already has.

    Returns:
        For every request its outputs, or the error it ends with.
    """
    good = [request for request in requests if not isinstance(request, GraphError)]
    answers = iter(_join(graph, good) if len(good) > 1 else [_alone(graph, request) for request in good])
    return [request if isinstance(request, GraphError) else next(answers) for request in requests]


def _alone(graph: Runnable, request: Tensors) -> Tensors | GraphError:
    try:
        return graph.run(request)
    except GraphError as error:
        return error


def _join(graph: Runnable, requests: Sequence[Tensors]) -> Sequence[Tensors | GraphError]:
    try:
        first = graph.inputs[0].name
        ends = np.cumsum([len(request[first]) for request in requests])
        joined = {t.name: np.concatenate([request[t.name] for request in requests]) for t in graph.inputs}
        outputs = graph.run(joined)
        if any(len(array) != ends[-1] for array in outputs.values()):
            raise GraphError("an output has not one row for each row that came in")
    except (GraphError, ValueError):  # one of them is at fault: alone, each gets the answer it deserves
        return [_alone(graph, request) for request in requests]
    parts = {name: np.split(array, ends[:-1]) for name, array in outputs.items()}
    return [{name: parts[name][index] for name in parts} for index in range(len(requests))]
