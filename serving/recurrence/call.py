"""A packed layer that is asked between two graphs of a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.serving.graph import GraphError, Tensor
from tristage.serving.program_file import RecurrenceCall
from tristage.serving.recurrence.engine import RecurrenceEngine, RecurrenceError

__all__ = ["Recurrence"]


@dataclass(frozen=True)
class Recurrence:
    """An opened layer; evaluated as a Graph is."""

    engine: RecurrenceEngine
    call: RecurrenceCall

    @classmethod
    def open(cls, folder: Path, call: RecurrenceCall) -> Recurrence:
        """Open the file that a call names.

        Raises:
            GraphError: it is missing, damaged, or cannot be run here.
        """
        try:
            return cls(RecurrenceEngine(folder / call.recurrence), call)
        except RecurrenceError as error:
            raise GraphError(str(error)) from error

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What it reads."""
        kind, dtype = ("TYPE_INT64", np.int64) if self.engine.rows else ("TYPE_FP32", np.float32)
        reads = (Tensor(self.call.inputs, kind, np.dtype(dtype), 0),)
        return reads if self.call.mask is None else (*reads, Tensor(self.call.mask, "TYPE_BOOL", np.dtype(bool), 0))

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What it makes."""
        floats = np.dtype(np.float32)
        return tuple(Tensor(tensor, "TYPE_FP32", floats, self.engine.width) for tensor in self.call.makes.values())

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer rows.

        Raises:
            GraphError: an id is not in the table.
        """
        mask = None if self.call.mask is None else tensors[self.call.mask]
        try:
            made = self.engine.run(
                tensors[self.call.inputs], None if mask is None else mask.reshape(mask.shape[:2]), list(self.call.makes)
            )
        except RecurrenceError as error:
            raise GraphError(f"the graph cannot be evaluated: {error}") from error
        return {tensor: made[name] for name, tensor in self.call.makes.items()}
