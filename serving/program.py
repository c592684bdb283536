"""A program: ONNX graphs, columns, forests, recurrences, searches and programs of candidates, one after the other.

`tristage.export.split` says how it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.serving.candidates import Candidates
from tristage.serving.columns import available
from tristage.serving.columns.call import Columns
from tristage.serving.features import Features
from tristage.serving.forest import ForestError, OpenForest, open_forest
from tristage.serving.graph import Graph, GraphError, Tensor
from tristage.serving.program_file import (
    PROGRAM_FILE,
    CandidatesCall,
    ColumnsCall,
    FeaturesCall,
    ForestCall,
    ProgramFile,
    RecurrenceCall,
    SearchCall,
    SourceCall,
)
from tristage.serving.recurrence.call import Recurrence
from tristage.serving.search import Search
from tristage.serving.source import Source

__all__ = ["Program", "open_compiled", "open_part"]

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Asked:
    """A step's forests, opened by every engine that answers them.

    Attributes:
        call: what is read and made.
        engines: (the most rows that it answers, the engine), fewest rows first; the last answers any number.
    """

    call: ForestCall
    engines: tuple[tuple[int | None, OpenForest], ...]

    @classmethod
    def open(cls, folder: Path, call: ForestCall, threads: int) -> Asked:
        """Open a call's engines, each once.

        Raises:
            ForestError: one is not installed, or cannot open its file.
        """
        opened: dict[tuple[str, str], OpenForest] = {}
        for choice in call.engines:
            key = (choice.engine, choice.file)
            if key not in opened:
                opened[key] = open_forest(choice.engine, folder / choice.file, threads)
        return cls(call, tuple((choice.rows, opened[choice.engine, choice.file]) for choice in call.engines))

    def predict(self, known: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Ask the engine that is chosen for so many rows; raises ForestError."""
        rows = known[self.call.rows]
        group = None if self.call.group is None else known[self.call.group].reshape(-1)
        engine = next(engine for most, engine in self.engines if most is None or len(rows) <= most)
        return engine.predict(rows, group)


OpenPart = Graph | Columns | Recurrence | Search | Candidates | Features | Source
Opened = OpenPart | Asked


@dataclass(frozen=True)
class Program:
    """An opened program; evaluated as a Graph is.

    Attributes:
        inputs: what is asked of a caller.
        outputs: its answers.
        parts: graphs and engines, in order.
        named: name of an answer -> the tensor it is.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parts: tuple[Opened, ...]
    named: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path, threads: int = 1) -> Program:
        """Open `program.json` and what it names.

        Raises:
            GraphError: a file is missing, damaged, or cannot be run here.
        """
        file = folder / PROGRAM_FILE
        try:
            said = ProgramFile.read(file)
            parts = [
                Asked.open(folder, part, threads) if isinstance(part, ForestCall) else open_part(folder, part, threads)
                for part in said.parts
            ]
            return cls(*_sides(parts, said.named), tuple(parts), said.named)
        except ForestError as error:
            raise GraphError(str(error)) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, GraphError):
                raise
            raise GraphError(f"{file} cannot be read: {error!r}") from error

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """Evaluate the program; arguments, answers and errors are those of `Graph.run`."""
        given = self._check(tensors)
        if not any(map(len, given.values())):
            return {tensor.name: np.empty((0, tensor.width), tensor.dtype) for tensor in self.outputs}
        known = self.tensors(given)
        return {name: known[tensor] for name, tensor in self.named.items()}

    def tensors(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """Every tensor between its parts, by name; arguments and errors are those of `run`, of one row at least."""
        known = self._check(tensors)
        for part in self.parts:
            if not isinstance(part, Asked):
                known.update(part.run(known))
                continue
            try:
                known[part.call.output] = part.predict(known)
            except ForestError as error:
                raise GraphError(f"the forest of step {part.call.step} cannot be evaluated: {error}") from error
        return known

    def _check(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        known: Tensors = {}
        for tensor in self.inputs:
            if tensor.name not in tensors:
                raise GraphError(f"input {tensor.name} is missing")
            known[tensor.name] = tensors[tensor.name]
            if known[tensor.name].dtype != tensor.dtype:
                raise GraphError(f"input {tensor.name} must be {tensor.dtype}, not {known[tensor.name].dtype}")
        return known


def open_part(
    folder: Path,
    part: str | ColumnsCall | RecurrenceCall | SearchCall | CandidatesCall | FeaturesCall | SourceCall,
    threads: int = 1,
) -> OpenPart:
    """Open a part of a program that is no forest; raises GraphError."""
    match part:
        case SourceCall():
            return Source.open(part)
        case RecurrenceCall():
            return Recurrence.open(folder, part)
        case SearchCall():
            return Search.open(folder, part)
        case CandidatesCall():
            return Candidates(open_compiled(folder / part.candidates, threads), part)
        case FeaturesCall():
            return Features(folder / part.features, part, partial(open_compiled, threads=threads))
        case ColumnsCall() if available():
            return Columns.open(folder, part)
        case ColumnsCall(graph=file) | str(file):
            return Graph.open(folder / file, threads)


def open_compiled(folder: Path, threads: int = 1) -> Graph | Program:
    """Open what a folder holds, a program or a graph; raises GraphError."""
    if (folder / PROGRAM_FILE).is_file():
        return Program.open(folder, threads)
    return Graph.open(folder / "graph.onnx", threads)


def _sides(parts: Sequence[Opened], named: Mapping[str, str]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What a program asks for, and what it answers."""
    asked: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    for part in parts:
        if not isinstance(part, Asked):
            reads, makes = part.inputs, part.outputs
        else:
            call, engine = part.call, part.engines[-1][1]
            reads = (Tensor(call.rows, "TYPE_FP32", np.dtype(np.float32), engine.features),)
            if call.group is not None:
                reads += (Tensor(call.group, "TYPE_INT64", np.dtype(np.int64), 1),)
            makes = (Tensor(call.output, "TYPE_FP32", np.dtype(np.float32), engine.outputs),)
        asked.update({tensor.name: tensor for tensor in reads if tensor.name not in made})
        made.update({tensor.name: tensor for tensor in makes})
    every = {**asked, **made}
    return tuple(asked.values()), tuple(replace(every[tensor], name=name) for name, tensor in named.items())
