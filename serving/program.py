"""A program: ONNX graphs, columns, forests, recurrences, searches and programs of candidates, one after the other.

`tristage.export.split` says how it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tristage.serving.candidates import Candidates
from tristage.serving.columns import available
from tristage.serving.columns.call import Columns
from tristage.serving.features import Features
from tristage.serving.forest import ForestError, OpenForest, open_forest
from tristage.serving.graph import Graph, GraphError, Tensor, given_to
from tristage.serving.program_file import (
    PROGRAM_FILE,
    CandidatesCall,
    ColumnsCall,
    FeaturesCall,
    ForestCall,
    Part,
    ProgramFile,
    RecurrenceCall,
    SearchCall,
    SourceCall,
)
from tristage.serving.recurrence.call import Recurrence
from tristage.serving.search import Search
from tristage.serving.source import Source

__all__ = [
    "Asked",
    "OpenPart",
    "Program",
    "Sided",
    "asked_of_forest",
    "made_by_forest",
    "open_compiled",
    "open_part",
    "sides",
]

Tensors = dict[str, NDArray[Any]]


class Sided(Protocol):
    """What has inputs and outputs."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What it reads."""

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What it makes."""


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

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The rows, and their groups where groups have forests of their own."""
        return asked_of_forest(self.call, self.engines[-1][1].features)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The answers."""
        return made_by_forest(self.call, self.engines[-1][1].outputs)

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """Ask the engine that is chosen for so many rows; raises GraphError."""
        rows = tensors[self.call.rows]
        group = None if self.call.group is None else tensors[self.call.group].reshape(-1)
        engine = next(engine for most, engine in self.engines if most is None or len(rows) <= most)
        try:
            return {self.call.output: engine.predict(rows, group)}
        except ForestError as error:
            raise GraphError(f"the forest of step {self.call.step} cannot be evaluated: {error}") from error


def asked_of_forest(call: ForestCall, features: int) -> tuple[Tensor, ...]:
    """What a call reads: the rows, and their groups where groups have forests of their own."""
    rows = Tensor(call.rows, "TYPE_FP32", np.dtype(np.float32), features)
    return (rows,) if call.group is None else (rows, Tensor(call.group, "TYPE_INT64", np.dtype(np.int64), 1))


def made_by_forest(call: ForestCall, outputs: int) -> tuple[Tensor, ...]:
    """What a call makes: the answers."""
    return (Tensor(call.output, "TYPE_FP32", np.dtype(np.float32), outputs),)


OpenPart = Asked | Graph | Columns | Recurrence | Search | Candidates | Features | Source


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
    parts: tuple[OpenPart, ...]
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
            parts = [open_part(folder, part, threads) for part in said.parts]
            return cls(*sides(parts, said.named), tuple(parts), said.named)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, GraphError):
                raise
            raise GraphError(f"{file} cannot be read: {error!r}") from error

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """Evaluate the program; arguments, answers and errors are those of `Graph.run`."""
        given = given_to(self.inputs, tensors)
        if not any(map(len, given.values())):
            return {tensor.name: np.empty((0, tensor.width), tensor.dtype) for tensor in self.outputs}
        known = self.tensors(given)
        return {name: known[tensor] for name, tensor in self.named.items()}

    def tensors(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """Every tensor between its parts, by name; arguments and errors are those of `run`, of one row at least."""
        known = given_to(self.inputs, tensors)
        for part in self.parts:
            known.update(part.run(known))
        return known


def open_part(folder: Path, part: Part, threads: int = 1) -> OpenPart:
    """Open a part of a program; raises GraphError."""
    match part:
        case ForestCall():
            try:
                return Asked.open(folder, part, threads)
            except ForestError as error:
                raise GraphError(str(error)) from error
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


def sides(parts: Sequence[Sided], named: Mapping[str, str]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What parts, one after the other, ask for, and what is answered of what they make."""
    asked: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    for part in parts:
        asked.update({tensor.name: tensor for tensor in part.inputs if tensor.name not in made})
        made.update({tensor.name: tensor for tensor in part.outputs})
    every = {**asked, **made}
    return tuple(asked.values()), tuple(replace(every[tensor], name=name) for name, tensor in named.items())
