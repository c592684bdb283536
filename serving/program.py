"""A program: ONNX graphs and packed forests, evaluated one after the other; see `tristage.export.split`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.serving.forest import ForestEngine, ForestError
from tristage.serving.graph import Graph, GraphError, Tensor

__all__ = ["PROGRAM_FILE", "ForestCall", "Program"]

PROGRAM_FILE = "program.json"
Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ForestCall:
    """A forest that is asked between two graphs.

    Attributes:
        forest: the packed forest's file.
        rows: the tensor that it reads.
        group: the tensor of the rows' groups; None without groups.
        output: the tensor that it makes.
    """

    forest: str
    rows: str
    group: str | None
    output: str


Part = Graph | tuple[ForestEngine, ForestCall]


@dataclass(frozen=True)
class Program:
    """An opened program; evaluated as a Graph is.

    Attributes:
        inputs: what is asked of a caller.
        outputs: its answers.
        parts: graphs and forests, in order.
        named: name of an answer -> the tensor it is.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parts: tuple[Part, ...]
    named: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path, threads: int = 1) -> Program:
        """Open `program.json` and what it names.

        Raises:
            GraphError: a file is missing, damaged, or cannot be run here.
        """
        file = folder / PROGRAM_FILE
        parts: list[Part] = []
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            for part in said["parts"]:
                if "graph" in part:
                    parts.append(Graph.open(folder / part["graph"], threads))
                else:
                    call = ForestCall(**part)
                    parts.append((ForestEngine(folder / call.forest), call))
            return cls(*_sides(parts, said["named"]), tuple(parts), dict(said["named"]))
        except ForestError as error:
            raise GraphError(str(error)) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, GraphError):
                raise
            raise GraphError(f"{file} cannot be read: {error!r}") from error

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """Evaluate the program; arguments, answers and errors are those of `Graph.run`."""
        known: Tensors = {}
        for tensor in self.inputs:
            if tensor.name not in tensors:
                raise GraphError(f"input {tensor.name} is missing")
            known[tensor.name] = tensors[tensor.name]
            if known[tensor.name].dtype != tensor.dtype:
                raise GraphError(f"input {tensor.name} must be {tensor.dtype}, not {known[tensor.name].dtype}")
        if not any(map(len, known.values())):
            return {tensor.name: np.empty((0, tensor.width), tensor.dtype) for tensor in self.outputs}
        for part in self.parts:
            if isinstance(part, Graph):
                known.update(part.run(known))
                continue
            engine, call = part
            group = None if call.group is None else known[call.group].reshape(-1)
            try:
                known[call.output] = engine.predict(known[call.rows], group)
            except ForestError as error:
                raise GraphError(f"the forest cannot be evaluated: {error}") from error
        return {name: known[tensor] for name, tensor in self.named.items()}


def _sides(parts: Sequence[Part], named: Mapping[str, str]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What a program asks for, and what it answers."""
    asked: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    for part in parts:
        if isinstance(part, Graph):
            reads, makes = part.inputs, part.outputs
        else:
            engine, call = part
            reads = (Tensor(call.rows, "TYPE_FP32", np.dtype(np.float32), engine.features),)
            if call.group is not None:
                reads += (Tensor(call.group, "TYPE_INT64", np.dtype(np.int64), 1),)
            makes = (Tensor(call.output, "TYPE_FP32", np.dtype(np.float32), engine.outputs),)
        asked.update({tensor.name: tensor for tensor in reads if tensor.name not in made})
        made.update({tensor.name: tensor for tensor in makes})
    every = {**asked, **made}
    return tuple(asked.values()), tuple(replace(every[tensor], name=name) for name, tensor in named.items())
