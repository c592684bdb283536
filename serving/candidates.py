"""A stack's program that is asked about every candidate of a row: candidates become rows, and its answers lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.serving.graph import Runnable, Tensor
from tristage.serving.program_file import CandidatesCall

__all__ = ["Candidates"]

_MOST = 8192  # rows that the program is asked about at once, which bounds the memory of what it computes


@dataclass(frozen=True)
class Candidates:
    """An opened program; evaluated as a Graph is.

    Attributes:
        inner: the program of the candidates' stack.
        call: how its tensors are made of a row's, and a row's of its.
    """

    inner: Runnable
    call: CandidatesCall

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What it reads: a value for each candidate, and what all candidates share."""
        inner = {tensor.name: tensor for tensor in self.inner.inputs}
        sides = (*self.call.each.items(), *self.call.shared.items())
        return tuple(
            Tensor(outer, its.triton_type, its.dtype, self.call.count if name in self.call.each else its.width)
            for name, outer in sides
            for its in (inner[name],)
        )

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What it makes: lists as long as there are candidates."""
        inner = {tensor.name: tensor for tensor in self.inner.outputs}
        return tuple(
            Tensor(outer, inner[name].triton_type, inner[name].dtype, self.call.count)
            for name, outer in self.call.makes.items()
        )

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer rows; arguments, answers and errors are those of `Graph.run`."""
        rows, count = len(tensors[next(iter(self.call.each.values()))]), self.call.count
        some = max(1, _MOST // count)
        parts = [self._some(tensors, slice(start, start + some)) for start in range(0, max(rows, 1), some)]
        return {
            outer: np.concatenate([part[name] for part in parts]).reshape(rows, count)
            for name, outer in self.call.makes.items()
        }

    def _some(self, tensors: Mapping[str, NDArray[Any]], rows: slice) -> dict[str, NDArray[Any]]:
        given = {name: tensors[outer][rows].reshape(-1, 1) for name, outer in self.call.each.items()}
        for name, outer in self.call.shared.items():
            given[name] = np.repeat(tensors[outer][rows], self.call.count, axis=0)
        return self.inner.run(given)
