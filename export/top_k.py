"""Top-k steps: the best of a row's candidates, and what else is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import Column
from tristage.export.net.outputs import NetOutput, Part, column_dtypes, parts_of
from tristage.export.onnx_graph import GraphBuilder

__all__ = ["CARRIED", "MASK", "SCORES", "TopK"]

SCORES, MASK, CARRIED = "scores", "mask", "carried "  # feeds; the name of what is carried follows
_NONE = {"int64": -1, "float32": np.nan}  # of a place that no candidate takes
_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class TopK:
    """The k highest of a row's scores, each with what is carried.

    Attributes:
        k: how many.
        carried: what is known of candidates besides: (name, "int64" or "float32").
        masked: whether a mask says which candidates may be taken.
    """

    k: int
    carried: tuple[tuple[str, str], ...]
    masked: bool

    @property
    def outputs(self) -> tuple[NetOutput, ...]:
        """The scores, then what is carried, best first."""
        return (NetOutput("score", self.k), *(NetOutput(name, self.k, dtype) for name, dtype in self.carried))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its outputs by their types."""
        return parts_of(self.outputs)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns, in order."""
        names = [f"{output.name}{n if self.k > 1 else ''}" for output in self.outputs for n in range(self.k)]
        return tuple(map(Column, names, column_dtypes(self.outputs)))

    @property
    def _taken(self) -> list[tuple[str, str]]:
        """The feeds that the best are taken of, and their types, in the order of `outputs`."""
        return [(SCORES, "float32"), *((CARRIED + name, dtype) for name, dtype in self.carried)]

    def predict(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """What NumPy answers for feeds [rows, candidates]: [rows, n] for each part."""
        scores = feeds[SCORES]
        allowed = ~np.isnan(scores)
        if self.masked:
            allowed &= feeds[MASK] != 0
        ranked = np.where(allowed, np.maximum(scores, np.float32(_LOWEST)), -np.inf)
        best = np.argsort(-ranked, axis=1, kind="stable")[:, : self.k]  # of equal scores the earlier candidate's
        taken = np.take_along_axis(allowed, best, axis=1)
        made = [
            np.where(taken, np.take_along_axis(feeds[name], best, axis=1), np.array(_NONE[dtype], dtype))
            for name, dtype in self._taken
        ]
        return [np.concatenate([made[at] for at in part.outputs], axis=1) for part in self.parts]

    def lower(self, graph: GraphBuilder, feeds: Mapping[str, str], step: str) -> tuple[str, ...]:
        """The same as nodes; the names of the tensors that they make, one for each part."""
        scores = feeds[SCORES]
        allowed = graph.add("Not", graph.add("IsNaN", scores))
        if self.masked:
            allowed = graph.add("And", allowed, graph.cast(feeds[MASK], "float32", "bool"))
        held = graph.add("Max", scores, graph.scalar(_LOWEST, "float32"))
        ranked = graph.add("Where", allowed, held, graph.scalar(-np.inf, "float32"))
        _, best = graph.add_many("TopK", ranked, graph.constant(np.array([self.k])), outputs=2, axis=1)
        whole = graph.add("GatherElements", graph.cast(allowed, "bool", "int64"), best, axis=1)
        taken = graph.cast(whole, "int64", "bool")
        made = [
            graph.add(
                "Where",
                taken,
                graph.add("GatherElements", feeds[name], best, axis=1),
                graph.scalar(_NONE[dtype], dtype),
            )
            for name, dtype in self._taken
        ]
        return tuple(graph.concat([made[at] for at in part.outputs]) for part in self.parts)
