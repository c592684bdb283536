"""A workflow that could not be compiled, run by NVTabular itself, with what a Graph has: inputs, outputs, run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import DTYPES, Column
from tristage.errors import ArtifactError
from tristage.serving.graph import GraphError, Tensor
from tristage.serving.workflow_file import Port, WorkflowFile, check_folder

__all__ = ["Interpreter"]


class Interpreter:
    """A saved workflow, opened with NVTabular.

    Attributes:
        inputs: the raw columns' tensors.
        outputs: the tensors it emits.
    """

    def __init__(self, file: WorkflowFile, workflow: Any) -> None:
        self._file = file
        self._workflow = workflow
        self._companion = {
            column.name: np.array([file.companion[column.name]], column.numpy_dtype) for column in file.inputs
        }
        self.inputs = tuple(_tensor(c.name, c.wire_dtype, c.width) for c in file.inputs)
        self.outputs = tuple(_tensor(p.name, p.dtype, sum(c.width for c in p.columns)) for p in file.outputs)

    @classmethod
    def open(cls, file: WorkflowFile) -> Interpreter:
        """Load the workflow, which runs whatever its pickle says, and warm it up.

        Raises:
            GraphError: its folder is gone or was changed, or NVTabular cannot load it.
        """
        try:
            check_folder(file)
        except ArtifactError as error:
            raise GraphError(str(error)) from error
        from tristage.serving import nvtabular

        try:
            workflow = nvtabular.at_serving_time(nvtabular.load(Path(file.folder)))
        except Exception as error:  # unpickling raises whatever the operators raise
            hint = "; set PYTHONPATH to where it lies" if isinstance(error, ModuleNotFoundError) else ""
            raise GraphError(f"NVTabular cannot load {file.folder} ({type(error).__name__}: {error}{hint})") from error
        made = cls(file, workflow)
        with contextlib.suppress(GraphError):
            made.run(made._companion)  # the first call reads the fitted tables
        return made

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Transform rows.

        Args:
            tensors: for every input an array [rows, width] of its dtype; strings as object arrays of str.

        Returns:
            For every output an array [rows, width]; strings as object arrays of str.

        Raises:
            GraphError: an input is missing or has another dtype, or NVTabular fails.
        """
        from tristage.serving import nvtabular

        given = {tensor.name: self._given(tensor, tensors) for tensor in self.inputs}
        rows = nvtabular.frame(given, self._file.inputs)
        try:
            made = nvtabular.transform(self._workflow, rows).iloc[:-1]
        except nvtabular.TransformFailed as error:
            raise GraphError(f"NVTabular's transform fails: {error}") from error
        return {port.name: _pack(made, port) for port in self._file.outputs}

    def _given(self, tensor: Tensor, tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """An input with the companion's row behind the others."""
        if tensor.name not in tensors:
            raise GraphError(f"input {tensor.name} is missing")
        array = tensors[tensor.name]
        if array.dtype != tensor.dtype:
            raise GraphError(f"input {tensor.name} must be {tensor.dtype}, not {array.dtype}")
        if array.ndim != 2 or array.shape[1] != tensor.width:
            raise GraphError(f"input {tensor.name} must be of shape [rows, {tensor.width}], not {list(array.shape)}")
        return np.concatenate([array, self._companion[tensor.name]])


def _tensor(name: str, dtype: str, width: int) -> Tensor:
    numpy_dtype, triton_dtype = DTYPES[dtype]
    triton_type = "TYPE_STRING" if triton_dtype == "BYTES" else f"TYPE_{triton_dtype}"
    return Tensor(name, triton_type, np.dtype(numpy_dtype), width)


def _pack(made: Any, port: Port) -> NDArray[Any]:
    """Columns of a data frame side by side, in the port's dtype."""
    dtype = np.dtype(DTYPES[port.dtype][0])
    return np.concatenate([_column(made, column, dtype) for column in port.columns], axis=1)


def _column(made: Any, column: Column, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A column [rows, width] in a dtype.

    Whole numbers stay whole numbers where they are read as such, though pandas makes floats of them for one null.
    """
    from tristage.serving import nvtabular

    text = column.dtype == "string"
    try:
        if column.length is not None:
            longest = max(map(len, made[column.name].dropna()), default=0)
            if longest > column.length:
                raise ValueError(f"a list has {longest} elements, and at most {column.length} were declared")
        found = nvtabular.values(made[column.name], column)
        if found.dtype.kind not in "biuf":
            _refuse([value for value in found.ravel().tolist() if isinstance(value, str) is not text])
            found = found if text else found.astype(np.float64)  # nulls become NaN
        with np.errstate(over="ignore", invalid="ignore"):  # as ONNX's Cast
            if dtype.kind in "biu" and column.numpy_dtype.kind in "biu":
                _refuse(found[found != found.astype(column.numpy_dtype)].tolist())
            array = found.astype(dtype)
    except (KeyError, TypeError, ValueError) as error:
        kind = column.dtype if column.length is None else f"lists of {column.dtype}"
        raise GraphError(f"NVTabular's column {column.name} is not what it was at export, {kind}: {error}") from error
    return array.reshape(len(array), column.width)


def _refuse(odd: list[Any]) -> None:
    if odd:
        raise ValueError(f"it makes {odd[0]!r}")
