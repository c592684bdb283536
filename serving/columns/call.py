"""A packed program of columns that is asked between two graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import DTYPES
from tristage.serving.columns.engine import ColumnsEngine, ColumnsError
from tristage.serving.graph import GraphError, Tensor, asked, derive
from tristage.serving.program_file import ColumnsCall

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """An opened program of columns; evaluated as a Graph is.

    Attributes:
        engine: the engine.
        reads: what it is given, in order: inputs, and fingerprints by their own names.
        inputs: what is asked of a caller; a fingerprint is asked for as the text it is made of.
        outputs: what it makes.
        shapes: the shape of a row of every output.
    """

    engine: ColumnsEngine
    reads: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def open(cls, folder: Path, call: ColumnsCall) -> Columns:
        """Open the files that a call names.

        Raises:
            GraphError: one is missing, damaged, or cannot be run here.
        """
        try:
            engine = ColumnsEngine(folder / call.columns, [folder / name for name in call.tables])
        except ColumnsError as error:
            raise GraphError(str(error)) from error
        reads = tuple(_tensor(name, dtype, shape) for name, (dtype, shape) in call.reads.items())
        makes = tuple(_tensor(name, dtype, shape) for name, (dtype, shape) in call.makes.items())
        given = {tensor.name: tensor for tensor in map(asked, reads)}
        return cls(engine, reads, tuple(given.values()), makes, tuple(shape for _, shape in call.makes.values()))

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer rows; arguments, answers and errors are those of `Graph.run`, of one row at least."""
        given = []
        for tensor in self.reads:
            array = tensors[tensor.name] if tensor.name in tensors else derive(tensor.name, tensors)
            if array.dtype != tensor.dtype:
                raise GraphError(f"input {tensor.name} must be {tensor.dtype}, not {array.dtype}")
            flags = array.flags
            given.append(array if flags.c_contiguous and flags.aligned else array.copy())
        rows = len(given[0])
        made = {
            tensor.name: np.empty((rows, *shape), tensor.dtype)
            for tensor, shape in zip(self.outputs, self.shapes, strict=True)
        }
        try:
            self.engine.run(rows, given, list(made.values()))
        except ColumnsError as error:
            raise GraphError(f"the graph cannot be evaluated: {error}") from error
        return made


def _tensor(name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, f"TYPE_{DTYPES[dtype][1]}", np.dtype(dtype), shape[-1] if len(shape) == 1 else 0)
