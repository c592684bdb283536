"""NVTabular's data frames where their arrays are: cuDF and CuPy on a GPU, handed to Triton and back by DLPack.

cuDF has pandas' interface, and CuPy NumPy's, so that the same lines run with pandas and NumPy on a host.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import NULL_STRING, Column
from tristage.serving.graph import GraphError
from tristage.serving.interpreted import refuse, refuse_long, texts_of

__all__ = ["DeviceFrames"]


@dataclass(frozen=True)
class DeviceFrames:
    """A library of data frames, and the one of their arrays.

    A NaN is a null, as it is to pandas: cuDF tells them apart, but a null number travels as NaN.

    Attributes:
        frames: cudf, or pandas.
        arrays: cupy, or numpy.
    """

    frames: Any
    arrays: Any

    @classmethod
    def open(cls, device: str) -> DeviceFrames:
        """The libraries of a device.

        Args:
            device: "cuda:0", "cuda:1", ..., which this process uses from now on; or "cpu".

        Raises:
            GraphError: cuDF is not installed, or the GPU cannot be used.
        """
        kind, _, number = device.partition(":")
        try:
            arrays = importlib.import_module("cupy" if kind == "cuda" else "numpy")
            if kind == "cuda":
                arrays.cuda.Device(int(number)).use()
            return cls(importlib.import_module("cudf" if kind == "cuda" else "pandas"), arrays)
        except ModuleNotFoundError as error:
            raise GraphError(
                f"{error.name} is not installed in the server's Python, and NVTabular on a GPU needs it: build the "
                "stage nvtabular of docker/Dockerfile.gpu, or say device: cpu of the step under triton in stack.yaml"
            ) from error
        except Exception as error:  # CUDA's errors share no base class
            raise GraphError(f"NVTabular cannot use {device}: {error}") from error

    @property
    def on_host(self) -> bool:
        """Whether arrays lie in the host's memory."""
        return self.arrays is np

    def taken(self, held: Any) -> Any:
        """A tensor of Triton's Python backend, of anything but texts: where it lies already, without a copy."""
        if held.is_cpu() == self.on_host:
            return self.arrays.from_dlpack(held)
        return self.array(held.as_numpy())

    def given(self, triton: Any, name: str, array: Any) -> Any:
        """An answer as a tensor of Triton's Python backend, without a copy through the host unless it holds texts."""
        if isinstance(array, np.ndarray):  # whose DLPack capsules end the process that Triton 2.51 runs a model in
            return triton.Tensor(name, array)
        return triton.Tensor.from_dlpack(name, self.arrays.ascontiguousarray(array))

    def array(self, values: NDArray[Any]) -> Any:
        """See `Frames`."""
        return self.arrays.asarray(values)

    def frame(self, tensors: Mapping[str, Any], columns: Sequence[Column]) -> Any:
        """See `Frames`."""
        return self.frames.DataFrame({column.name: self._series(tensors[column.name], column) for column in columns})

    def _series(self, array: Any, column: Column) -> Any:
        if column.length is not None:
            return self._lists(array, column)
        scalars = array[:, 0]
        if column.dtype == "string":
            return self._texts([None if text == NULL_STRING else text for text in scalars.tolist()])
        if column.dtype == "bool" and column.nullable:
            present = self.frames.Series(~self.arrays.isnan(scalars))
            return self.frames.Series(scalars == 1).where(present, None)
        return self.frames.Series(scalars)  # cuDF's makes nulls of NaN

    def _texts(self, texts: list[str | None]) -> Any:
        return self.frames.Series(texts, dtype="object")

    def _lists(self, array: Any, column: Column) -> Any:
        """Lists without their padding, which is what stands last: an element that equals the pad may stand before."""
        from merlin.core.dispatch import create_multihot_col

        arrays = np if column.dtype == "string" else self.arrays
        nan = isinstance(column.pad, float) and column.pad != column.pad
        whole = arrays.ones(array.shape, bool)  # lists without a pad are always full
        element = whole if column.pad is None else ~arrays.isnan(array) if nan else array != column.pad
        positions = arrays.arange(1, column.width + 1)
        lengths = arrays.where(element, positions, 0).max(axis=1)
        elements = array[positions <= lengths[:, None]]
        offsets = arrays.zeros(len(array) + 1, np.int32)
        offsets[1:] = arrays.cumsum(lengths)
        flat = self._texts(elements.tolist()) if column.dtype == "string" else self.frames.Series(elements)
        return create_multihot_col(self.frames.Series(offsets), flat)

    def column(self, made: Any, column: Column, dtype: np.dtype[Any]) -> Any:
        """See `Frames`."""
        series = made[column.name]
        if column.dtype == "string":
            series = series if self.on_host else series.to_pandas()
            if column.length is not None:
                refuse_long(max(map(len, series.dropna()), default=0), column)
            return texts_of(series, column)
        found = self._numbers(series) if column.length is None else self._padded(series, column)
        if dtype.kind in "biu" and column.numpy_dtype.kind in "biu":
            with np.errstate(invalid="ignore"):
                refuse(found[found != found.astype(column.numpy_dtype)][:1].tolist())
        return self._cast(found, dtype)

    def _numbers(self, series: Any) -> Any:
        """[rows]; float64, and NaN for them, where there are nulls."""
        if series.dtype != object and not series.isna().any():
            return series.values
        series = series.astype("float64")
        return series.to_numpy(na_value=np.nan) if self.on_host else series.to_cupy(na_value=np.nan)

    def _padded(self, series: Any, column: Column) -> Any:
        """Lists of numbers, [rows, length], filled up with the pad."""
        from merlin.core.dispatch import pull_apart_list

        arrays = self.arrays
        flat, offsets = (arrays.asarray(part.values) for part in pull_apart_list(series))
        flat = flat[int(offsets[0]) : int(offsets[-1])]  # cuDF's elements are those of the rows cut off, too
        starts, ends = offsets[:-1] - offsets[0], offsets[1:] - offsets[0]
        refuse_long(int((ends - starts).max()) if len(series) else 0, column)
        padded = arrays.full(
            (len(series), column.width), column.pad or 0, np.result_type(flat.dtype, column.numpy_dtype)
        )
        element = arrays.arange(len(flat))
        row = arrays.searchsorted(ends, element, side="right")
        padded[row, element - starts[row]] = flat
        return padded

    def _cast(self, found: Any, dtype: np.dtype[Any]) -> Any:
        """As the host does it: floats that an integer cannot hold become what its processor makes of them."""
        with np.errstate(over="ignore", invalid="ignore"):
            if found.dtype.kind == "f" and dtype.kind in "iu" and not self.on_host:
                return self.arrays.asarray(found.get().astype(dtype))
            return found.astype(dtype)
