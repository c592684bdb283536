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

__all__ = ["Recurrence", "asked_of", "made_by"]


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
        return asked_of(self.call, by_id=bool(self.engine.rows))

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What it makes."""
        return made_by(self.call, self.engine.width)

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


def asked_of(call: RecurrenceCall, *, by_id: bool) -> tuple[Tensor, ...]:
    """What a call reads: ids, or projected inputs, and the mask where it has one."""
    kind, dtype = ("TYPE_INT64", np.int64) if by_id else ("TYPE_FP32", np.float32)
    reads = (Tensor(call.inputs, kind, np.dtype(dtype), 0),)
    return reads if call.mask is None else (*reads, Tensor(call.mask, "TYPE_BOOL", np.dtype(bool), 0))


def made_by(call: RecurrenceCall, width: int) -> tuple[Tensor, ...]:
    """What a call makes: states of so many numbers."""
    return tuple(Tensor(tensor, "TYPE_FP32", np.dtype(np.float32), width) for tensor in call.makes.values())
