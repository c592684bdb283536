"""A lowered graph, opened with ONNX Runtime on the CPU and evaluated on dictionaries of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tristage.fingerprint import DERIVED, fingerprints

__all__ = [
    "Graph",
    "GraphError",
    "Runnable",
    "Tensor",
    "asked",
    "decode",
    "derive",
    "given_to",
    "not_utf8",
    "triton_type",
]

# ONNX Runtime's name of an element type -> (Triton's name in configurations, numpy's)
_TYPES = {
    "tensor(bool)": ("TYPE_BOOL", "bool"),
    "tensor(int8)": ("TYPE_INT8", "int8"),
    "tensor(int16)": ("TYPE_INT16", "int16"),
    "tensor(int32)": ("TYPE_INT32", "int32"),
    "tensor(int64)": ("TYPE_INT64", "int64"),
    "tensor(uint8)": ("TYPE_UINT8", "uint8"),
    "tensor(uint16)": ("TYPE_UINT16", "uint16"),
    "tensor(uint32)": ("TYPE_UINT32", "uint32"),
    "tensor(uint64)": ("TYPE_UINT64", "uint64"),
    "tensor(float16)": ("TYPE_FP16", "float16"),
    "tensor(float)": ("TYPE_FP32", "float32"),
    "tensor(double)": ("TYPE_FP64", "float64"),
    "tensor(string)": ("TYPE_STRING", "object"),
}


class GraphError(ValueError):
    """A graph cannot be opened, or arrays do not fit it. Never leaves the server: it becomes a request's error."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph.

    Attributes:
        name: its name.
        triton_type: as in config.pbtxt, such as "TYPE_FP32".
        dtype: numpy's; object for strings.
        width: elements a row; 0 where the graph does not say.
    """

    name: str
    triton_type: str
    dtype: np.dtype[Any]
    width: int


class Runnable(Protocol):
    """What answers tensors with tensors: a Graph, a Program of several parts, or an Interpreter."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What it reads."""

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What it emits."""

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Evaluate it; raises GraphError."""


@dataclass(frozen=True)
class Graph:
    """An opened graph.

    Attributes:
        session: ONNX Runtime's.
        inputs: what is asked of a caller, in the graph's order; a fingerprint is asked for as the text it is made of.
        outputs: its outputs in the graph's order.
        reads: what ONNX Runtime is given: inputs, and fingerprints by their own names.
    """

    session: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    reads: tuple[str, ...]

    @classmethod
    def open(cls, path: Path, threads: int = 1) -> Graph:
        """Open an ONNX file, with the external data beside it.

        Args:
            path: the file.
            threads: threads one operator may use.

        Raises:
            GraphError: the file is missing or is no graph that this ONNX Runtime can run.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.enable_mem_pattern = False  # a pattern is kept for every batch size ever seen
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the core is shared with Triton
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise GraphError(f"{path} cannot be opened by ONNX Runtime {onnxruntime.__version__}: {error}") from error
        return cls.of(session)

    @classmethod
    def of(cls, session: Any) -> Graph:
        """A graph that ONNX Runtime has opened."""
        read = list(map(_tensor, session.get_inputs()))
        inputs = {tensor.name: tensor for tensor in map(asked, read)}
        outputs = tuple(map(_tensor, session.get_outputs()))
        return cls(session, tuple(inputs.values()), outputs, tuple(tensor.name for tensor in read))

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Evaluate the graph.

        Args:
            tensors: for every input an array of its dtype, [rows, k]; strings as object arrays of str.

        Returns:
            For every output an array [rows, k]; strings as object arrays of str.

        Raises:
            GraphError: an input is missing or has another dtype, or the evaluation fails.
        """
        feed = given_to(self.inputs, tensors)
        if feed and not any(map(len, feed.values())):
            # ONNX Runtime's GRU ends the process when it is given no rows
            return {tensor.name: np.empty((0, tensor.width), tensor.dtype) for tensor in self.outputs}
        given = {name: feed[name] if name in feed else derive(name, feed) for name in self.reads}
        try:
            answers = self.session.run(None, given)
        except Exception as error:
            raise GraphError(f"the graph cannot be evaluated: {error}") from error
        return {tensor.name: answer for tensor, answer in zip(self.outputs, answers, strict=True)}


def given_to(inputs: Sequence[Tensor], tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What is given for inputs; raises GraphError where one is missing or has another dtype."""
    for tensor in inputs:
        if tensor.name not in tensors:
            raise GraphError(f"input {tensor.name} is missing")
        if tensors[tensor.name].dtype != tensor.dtype:
            raise GraphError(f"input {tensor.name} must be {tensor.dtype}, not {tensors[tensor.name].dtype}")
    return {tensor.name: tensors[tensor.name] for tensor in inputs}


def _tensor(argument: Any) -> Tensor:
    if argument.type not in _TYPES:
        raise GraphError(f"{argument.name} is a {argument.type}, which Triton has no type for")
    triton_type, dtype = _TYPES[argument.type]
    width = argument.shape[1] if len(argument.shape) == 2 and isinstance(argument.shape[1], int) else 0
    return Tensor(argument.name, triton_type, np.dtype(dtype), width)


def triton_type(dtype: np.dtype[Any]) -> str:
    """Triton's name of a type; raises GraphError where it has none."""
    for name, own in _TYPES.values():
        if np.dtype(own) == dtype:
            return name
    raise GraphError(f"Triton has no type for {dtype}")


def asked(tensor: Tensor) -> Tensor:
    """What a caller gives for an input: the text, where it is a fingerprint."""
    if not tensor.name.startswith(DERIVED):
        return tensor
    return Tensor(tensor.name.removeprefix(DERIVED), "TYPE_STRING", np.dtype(object), tensor.width)


def derive(name: str, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """A fingerprint that a graph reads, of the text it is made of."""
    texts = feed[name.removeprefix(DERIVED)]
    return fingerprints(texts.ravel().tolist()).reshape(texts.shape)


def decode(array: NDArray[np.object_], name: str) -> NDArray[np.object_]:
    """Strings as Triton hands them over (bytes) -> as ONNX Runtime takes them (str), same shape.

    Raises:
        GraphError: one is not UTF-8.
    """
    out = np.empty(array.size, dtype=object)
    try:
        out[:] = [value.decode() for value in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise not_utf8(name, error.object) from error
    return out.reshape(array.shape)


def not_utf8(name: str, value: bytes) -> GraphError:
    """The error of an input that holds a string which is not UTF-8."""
    return GraphError(f"input {name} holds a string that is not UTF-8: {value[:40]!r}")
