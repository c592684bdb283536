"""A workflow that could not be compiled, run by NVTabular itself, with what a Graph has: inputs, outputs, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tristage.columns import DTYPES, Column
from tristage.errors import ArtifactError
from tristage.serving.graph import GraphError, Tensor
from tristage.serving.workflow_file import Port, WorkflowFile, check_folder

__all__ = ["Frames", "Interpreter", "PandasFrames", "refuse", "refuse_long", "texts_of"]


class Frames(Protocol):
    """A library of data frames that NVTabular takes, and the arrays that their columns are made of."""

    def array(self, values: NDArray[Any]) -> Any:
        """An array of the host, of anything but texts, where the frames are."""

    def frame(self, tensors: Mapping[str, Any], columns: Sequence[Column]) -> Any:
        """Raw columns as they travel, [rows, width] each, as a data frame with the index 0, 1, ...."""

    def column(self, made: Any, column: Column, dtype: np.dtype[Any]) -> Any:
        """A column of a data frame, [rows] or [rows, length], in a dtype.

        Whole numbers stay whole numbers where they are read as such, though a null may have made floats of them.

        Raises:
            KeyError, TypeError, ValueError: it is not there, or not what it was at export.
        """


class Interpreter:
    """A saved workflow, opened with NVTabular.

    Attributes:
        inputs: the raw columns' tensors.
        outputs: the tensors it emits.
        frames: what NVTabular is given, and where it computes.
    """

    def __init__(self, file: WorkflowFile, workflow: Any, frames: Frames) -> None:
        self._file = file
        self._workflow = workflow
        self.frames = frames
        companion = {c.name: np.array([file.companion[c.name]], c.numpy_dtype) for c in file.inputs}
        self._companion = {
            name: values if values.dtype == object else frames.array(values) for name, values in companion.items()
        }
        self.inputs = tuple(_tensor(c.name, c.wire_dtype, c.width) for c in file.inputs)
        self.outputs = tuple(_tensor(p.name, p.dtype, sum(c.width for c in p.columns)) for p in file.outputs)

    @classmethod
    def open(cls, file: WorkflowFile, frames: Frames | None = None) -> Interpreter:
        """Load the workflow, which runs whatever its pickle says, and warm it up.

        Args:
            file: which workflow, and its columns.
            frames: what NVTabular is given; pandas' if None.

        Raises:
            GraphError: its folder is gone or was changed, NVTabular cannot load it, or cannot transform such frames.
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
        made = cls(file, workflow, PandasFrames() if frames is None else frames)
        try:
            made.run(made._companion)  # the first call reads the fitted tables
        except GraphError as error:
            if frames is not None:  # the exporter has asked pandas, and nobody the others
                raise GraphError(f"{error}; where pandas can, say device: cpu of the step under triton") from error
        return made

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Transform rows.

        Args:
            tensors: for every input an array [rows, width] of its dtype, where the frames are; strings as object
                arrays of str.

        Returns:
            For every output an array [rows, width], likewise.

        Raises:
            GraphError: an input is missing or has another dtype, or NVTabular fails.
        """
        from tristage.serving import nvtabular

        given = {tensor.name: self._given(tensor, tensors) for tensor in self.inputs}
        try:
            made = nvtabular.transform(self._workflow, self.frames.frame(given, self._file.inputs)).iloc[:-1]
        except nvtabular.TransformFailed as error:
            raise GraphError(f"NVTabular's transform fails: {error}") from error
        return {port.name: self._pack(made, port) for port in self._file.outputs}

    def _pack(self, made: Any, port: Port) -> Any:
        """Columns of a data frame side by side, in the port's dtype."""
        dtype = np.dtype(DTYPES[port.dtype][0])
        packed = []
        for column in port.columns:
            try:
                array = self.frames.column(made, column, dtype)
            except (KeyError, TypeError, ValueError) as error:
                kind = column.dtype if column.length is None else f"lists of {column.dtype}"
                raise GraphError(
                    f"NVTabular's column {column.name} is not what it was at export, {kind}: {error}"
                ) from error
            packed.append(array.reshape(len(array), column.width))
        return np.concatenate(packed, axis=1)  # of CuPy's arrays too, which NumPy leaves to CuPy

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


class PandasFrames:
    """pandas and NumPy, on the host."""

    def array(self, values: NDArray[Any]) -> NDArray[Any]:
        """See `Frames`."""
        return values

    def frame(self, tensors: Mapping[str, NDArray[Any]], columns: Sequence[Column]) -> Any:
        """See `Frames`."""
        from tristage.serving import nvtabular

        return nvtabular.frame(tensors, columns)

    def column(self, made: Any, column: Column, dtype: np.dtype[Any]) -> NDArray[Any]:
        """See `Frames`."""
        from tristage.serving import nvtabular

        series = made[column.name]
        if column.length is not None:
            refuse_long(max(map(len, series.dropna()), default=0), column)
        if column.dtype == "string":
            return texts_of(series, column)
        found = nvtabular.values(series, column)
        if found.dtype.kind not in "biuf":
            refuse([value for value in found.ravel().tolist() if isinstance(value, str)])
            found = found.astype(np.float64)  # nulls become NaN
        with np.errstate(over="ignore", invalid="ignore"):  # as ONNX's Cast
            if dtype.kind in "biu" and column.numpy_dtype.kind in "biu":
                refuse(found[found != found.astype(column.numpy_dtype)].tolist())
            return found.astype(dtype)


def texts_of(series: Any, column: Column) -> NDArray[np.object_]:
    """A pandas.Series of texts, or of lists of them; raises ValueError where it holds something else."""
    from tristage.serving import nvtabular

    found = nvtabular.values(series, column)
    refuse([value for value in found.ravel().tolist() if not isinstance(value, str)])
    return found.astype(object)


def refuse(odd: list[Any]) -> None:
    """Raise ValueError where there is an odd value."""
    if odd:
        raise ValueError(f"it makes {odd[0]!r}")


def refuse_long(longest: int, column: Column) -> None:
    """Raise ValueError where a list is longer than its column's."""
    if column.length is not None and longest > column.length:
        raise ValueError(f"a list has {longest} elements, and at most {column.length} were declared")
