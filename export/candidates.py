"""Candidates: a stack that is asked about every candidate of a row, as one node of the graph of its step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import Column
from tristage.export.net.outputs import NetOutput, Part, column_dtypes, distinct, parts_of
from tristage.export.onnx_graph import ENGINE_DOMAIN, GraphBuilder

if TYPE_CHECKING:
    from tristage.export.lowered import LoweredStack
    from tristage.export.place import Placement

__all__ = ["CANDIDATES_NODE", "Candidates"]

CANDIDATES_NODE = "Candidates"  # the operator, of ENGINE_DOMAIN, that stands for a stack


@dataclass(frozen=True)
class Candidates:
    """A stack that answers each of a row's candidates.

    Attributes:
        folder: its program, in the folder of large tables.
        count: candidates of a row.
        each: its raw columns that differ from candidate to candidate.
        shared: its raw columns that are the same for all of a row's.
        outputs: what it answers, a value for each candidate.
        lowered: the stack.
        placement: the same, a model for each of its steps.
        ask: its tensors -> what its training libraries answer, output -> [rows].
    """

    folder: str
    count: int
    each: tuple[str, ...]
    shared: tuple[str, ...]
    outputs: tuple[NetOutput, ...]
    lowered: LoweredStack
    placement: Placement
    ask: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its outputs by their types."""
        return parts_of(self.outputs)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns, in order: each output's, numbered as the candidates are."""
        one = self.count == 1
        names = [
            output.name if one else f"{output.name}{number}" for output in self.outputs for number in range(self.count)
        ]
        return tuple(map(Column, distinct(names), column_dtypes(self.outputs)))

    def rows_of(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Rows' candidates as rows of their own, one after the other.

        Args:
            feeds: by raw column of the stack, [rows, candidates] where it differs, else [rows, width].

        Returns:
            The stack's tensors, [rows * candidates, width].
        """
        made = {name: feeds[name].reshape(-1, 1) for name in self.each}
        return made | {name: np.repeat(feeds[name], self.count, axis=0) for name in self.shared}

    def predict(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """What the training libraries answer for the candidates: [rows, n] for each part."""
        answers = self.ask(self.rows_of(feeds))
        wide = [np.asarray(answers[output.name]).reshape(-1, self.count) for output in self.outputs]
        return [
            np.concatenate([wide[at].astype(part.dtype, copy=False) for at in part.outputs], axis=1)
            for part in self.parts
        ]

    def lower(self, graph: GraphBuilder, feeds: Mapping[str, str], step: str) -> tuple[str, ...]:
        """The node that stands for it; the names of the tensors that it makes, one for each part."""
        said = {"candidates": self.folder, "each": self.each, "shared": self.shared}
        made = graph.add_many(
            CANDIDATES_NODE,
            *(feeds[name] for name in (*self.each, *self.shared)),
            outputs=len(self.outputs),
            domain=ENGINE_DOMAIN,
            name=step,
            call=json.dumps({**said, "makes": [output.name for output in self.outputs]}),
            width=self.count,
            dtypes=[output.dtype for output in self.outputs],
        )
        return tuple(
            graph.concat([graph.cast(made[at], self.outputs[at].dtype, part.dtype) for at in part.outputs])
            for part in self.parts
        )
