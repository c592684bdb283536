"""A net's outputs: one tensor or several, named or not, become columns side by side, those of a type together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tristage.export.onnx_graph import onnx_type

__all__ = [
    "NetOutput",
    "Part",
    "column_dtypes",
    "column_names",
    "distinct",
    "join_answers",
    "join_outputs",
    "parts_of",
    "score_names",
]

_JOINED = "tristage_answers"
_FLOATS = ("float32", "float64")


@dataclass(frozen=True)
class NetOutput:
    """One output of a net: a tensor of shape [rows] (`columns` None) or [rows, columns]; "" where it has no name."""

    name: str
    columns: int | None
    dtype: str = "float32"

    @property
    def width(self) -> int:
        """Values a row."""
        return self.columns or 1


@dataclass(frozen=True)
class Part:
    """Outputs of one type, side by side in a tensor [rows, width].

    Attributes:
        dtype: of the tensor.
        served: of the columns: float32 for floats, else the tensor's own, so that an id stays the id it is.
        outputs: which of the net's outputs lie in it.
        positions: which of the net's columns they are.
    """

    dtype: str
    served: str
    outputs: tuple[int, ...]
    positions: tuple[int, ...]


def parts_of(outputs: Sequence[NetOutput]) -> tuple[Part, ...]:
    """A net's outputs by what their columns are served as, in the order in which each comes first."""
    kinds = [_served(output.dtype) for output in outputs]
    starts = np.cumsum([0, *(output.width for output in outputs)]).tolist()
    parts = []
    for kind in dict.fromkeys(kinds):
        its = tuple(at for at, other in enumerate(kinds) if other == kind)
        dtypes = {outputs[at].dtype for at in its}
        positions = tuple(place for at in its for place in range(starts[at], starts[at + 1]))
        parts.append(Part(dtypes.pop() if len(dtypes) == 1 else kind, kind, its, positions))
    return tuple(parts)


def column_dtypes(outputs: Sequence[NetOutput]) -> list[str]:
    """What each of a net's columns is served as."""
    return [_served(output.dtype) for output in outputs for _ in range(output.width)]


def _served(dtype: str) -> str:
    return "float32" if dtype in _FLOATS else dtype


def column_names(outputs: Sequence[NetOutput], targets: Sequence[str]) -> list[str]:
    """What a net's columns are called.

    Several outputs give their names: `buy` of one value a row, `buy0`, `buy1`, ... of more. Of a single output, and of
    several without names, columns are called after the targets where there are as many, else score, or score0, ...
    """
    if len(outputs) == 1 or not all(output.name for output in outputs):
        return score_names(sum(output.width for output in outputs), targets)
    names = []
    for output in outputs:
        name = re.sub(r"\W+", "_", output.name).strip("_") or "output"
        names += [name] if output.width == 1 else [f"{name}{number}" for number in range(output.width)]
    return distinct(names)


def distinct(names: Sequence[str]) -> list[str]:
    """Names, each once: one that stands twice gets its place behind it."""
    return [name if names.count(name) == 1 else f"{name}_{at}" for at, name in enumerate(names)]


def score_names(count: int, targets: Sequence[str]) -> list[str]:
    """Names of so many columns: the targets where there are as many, else score, or score0, score1, ..."""
    if count == len(targets):
        return list(targets)
    return ["score"] if count == 1 else [f"score{number}" for number in range(count)]


def join_outputs(model: onnx.ModelProto, outputs: Sequence[NetOutput]) -> onnx.ModelProto:
    """The model with its outputs side by side, in one tensor [rows, n] for each of their parts.

    Args:
        model: its outputs have the shapes [rows] or [rows, n]; it is not changed.
        outputs: what they are.
    """
    values, parts = list(model.graph.output), parts_of(outputs)
    if len(parts) == len(outputs) and all(output.columns is not None for output in outputs):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), f"{_JOINED}_axis"))
    del graph.output[:]
    for number, part in enumerate(parts):
        kind, pieces = onnx_type(part.dtype), []
        for at in part.outputs:
            piece = values[at].name
            if outputs[at].dtype != part.dtype:
                graph.node.append(helper.make_node("Cast", [piece], [f"{_JOINED}_cast{at}"], to=kind))
                piece = f"{_JOINED}_cast{at}"
            if outputs[at].columns is None:
                graph.node.append(helper.make_node("Unsqueeze", [piece, f"{_JOINED}_axis"], [f"{_JOINED}_wide{at}"]))
                piece = f"{_JOINED}_wide{at}"
            pieces.append(piece)
        name = f"{_JOINED}{number or ''}"
        graph.node.append(helper.make_node("Concat", pieces, [name], axis=1))
        graph.output.append(helper.make_tensor_value_info(name, kind, ["rows", len(part.positions)]))
    return made


def join_answers(answers: Sequence[NDArray[Any]], outputs: Sequence[NetOutput]) -> list[NDArray[Any]]:
    """What a framework answered, of shapes [rows] or [rows, n], side by side: an array [rows, n] for each part."""
    wide = [answer[:, None] if answer.ndim == 1 else answer for answer in map(np.asarray, answers)]
    return [
        np.concatenate([wide[at].astype(part.dtype, copy=False) for at in part.outputs], axis=1)
        for part in parts_of(outputs)
    ]
