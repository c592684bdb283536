"""A net's outputs: one tensor or several, named or not, become columns side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["NetOutput", "column_names", "distinct", "join_answers", "join_outputs", "score_names"]

_JOINED = "tristage_answers"
_TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


@dataclass(frozen=True)
class NetOutput:
    """One output of a net: a tensor of shape [rows] (`columns` None) or [rows, columns]; "" where it has no name."""

    name: str
    columns: int | None

    @property
    def width(self) -> int:
        """Values a row."""
        return self.columns or 1


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


def join_outputs(model: onnx.ModelProto, dtypes: Sequence[str]) -> tuple[onnx.ModelProto, str]:
    """The model with its outputs side by side in one tensor [rows, n], and that tensor's dtype.

    Args:
        model: its outputs have the shapes [rows] or [rows, n]; it is not changed.
        dtypes: of its outputs; where they differ all become float32, as every column is served.
    """
    values = list(model.graph.output)
    if len(values) == 1 and len(values[0].type.tensor_type.shape.dim) == 2:
        return model, dtypes[0]
    dtype = dtypes[0] if len(set(dtypes)) == 1 and dtypes[0] in _TYPES else "float32"
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), f"{_JOINED}_axis"))
    parts = []
    for at, (value, given) in enumerate(zip(values, dtypes, strict=True)):
        part = value.name
        if given != dtype:
            graph.node.append(helper.make_node("Cast", [part], [f"{_JOINED}_cast{at}"], to=_TYPES[dtype]))
            part = f"{_JOINED}_cast{at}"
        if len(value.type.tensor_type.shape.dim) == 1:
            graph.node.append(helper.make_node("Unsqueeze", [part, f"{_JOINED}_axis"], [f"{_JOINED}_wide{at}"]))
            part = f"{_JOINED}_wide{at}"
        parts.append(part)
    graph.node.append(helper.make_node("Concat", parts, [_JOINED], axis=1))
    del graph.output[:]
    width = sum(dims[1].dim_value if len(dims := value.type.tensor_type.shape.dim) == 2 else 1 for value in values)
    graph.output.append(helper.make_tensor_value_info(_JOINED, _TYPES[dtype], ["rows", width]))
    return made, dtype


def join_answers(answers: Sequence[NDArray[Any]], dtype: str) -> NDArray[Any]:
    """What a framework answered, of shapes [rows] or [rows, n], side by side."""
    parts = [answer[:, None] if answer.ndim == 1 else answer for answer in answers]
    return np.asarray(parts[0]) if len(parts) == 1 else np.concatenate([part.astype(dtype) for part in parts], axis=1)
