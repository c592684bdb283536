"""`program.json`: the graphs of a model, what is asked between them, and which engine answers a forest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tristage.errors import RepositoryError

__all__ = [
    "PROGRAM_FILE",
    "Call",
    "CandidatesCall",
    "Choice",
    "ColumnsCall",
    "FeaturesCall",
    "ForestCall",
    "Part",
    "ProgramFile",
    "RecurrenceCall",
    "SearchCall",
    "Sides",
    "SourceCall",
    "read_calls",
]

PROGRAM_FILE = "program.json"


@dataclass(frozen=True)
class Choice:
    """An engine and how many rows it is asked about.

    Attributes:
        rows: the most rows that it answers at once; None for any number.
        engine: one of `tristage.serving.forest.ENGINES`; at export also "fil", Triton's backend.
        file: the file that it opens.
    """

    rows: int | None
    engine: str
    file: str


@dataclass(frozen=True)
class ForestCall:
    """A forest that is asked between two graphs.

    Attributes:
        step: the stack's step that it is.
        recipe: the file that names its trees, see `tristage.serving.forest.recipe`; "" for FIL's.
        rows: the tensor that it reads.
        group: the tensor of the rows' groups; None without groups.
        output: the tensor that it makes.
        engines: who answers, fewest rows first; the last answers any number.
    """

    step: str
    recipe: str
    rows: str
    group: str | None
    output: str
    engines: tuple[Choice, ...]


@dataclass(frozen=True)
class RecurrenceCall:
    """A GRU or LSTM layer that is asked between two graphs.

    Attributes:
        recurrence: the packed layer's file.
        inputs: the tensor of ids or of projected inputs.
        mask: the tensor of the mask, [rows, steps, 1]; None without.
        makes: what the engine calls it -> the tensor that it becomes.
    """

    recurrence: str
    inputs: str
    mask: str | None
    makes: Mapping[str, str]


Sides = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor -> its dtype, and the shape of a row: (), (width,), or (length, width)."""


@dataclass(frozen=True)
class ColumnsCall:
    """Columns that the columns engine computes.

    Attributes:
        columns: the packed program's file.
        graph: the graph's file that it was made of: the same as ONNX, which answers where there is no engine.
        tables: the files of the large tables that it reads.
        reads: what it reads.
        makes: what it makes.
    """

    columns: str
    graph: str
    tables: tuple[str, ...]
    reads: Sides
    makes: Sides


@dataclass(frozen=True)
class SearchCall:
    """A Faiss index that is asked between two graphs.

    Attributes:
        step: the stack's step that it is.
        index: the index's file.
        queries: the tensor that it reads, [rows, width].
        width: numbers of a query.
        k: neighbours that it answers.
        items: the tensor of their ids that it makes.
        scores: the tensor of how near they are.
        compared: vectors that every row is compared with; None where the search decides.
    """

    step: str
    index: str
    queries: str
    width: int
    k: int
    items: str
    scores: str
    compared: int | None


@dataclass(frozen=True)
class CandidatesCall:
    """A stack's program that is asked about every candidate of a row.

    Attributes:
        step: the stack's step that it is.
        candidates: the folder of the program, `program.json` or `graph.onnx`.
        count: candidates of a row.
        each: input of the program -> the tensor that holds one value of it for each candidate.
        shared: input of the program -> the tensor that all candidates of a row share.
        makes: output of the program -> the tensor that becomes of it, a value for each candidate.
    """

    step: str
    candidates: str
    count: int
    each: Mapping[str, str]
    shared: Mapping[str, str]
    makes: Mapping[str, str]


@dataclass(frozen=True)
class FeaturesCall:
    """A table of features that is asked between two graphs, and may be exchanged while it is served.

    Attributes:
        step: the stack's step that it is.
        features: the folder of the table's versions, see `tristage.serving.feature_files`.
        reads: the tensor of the ids, [rows, 1].
        makes: feature -> the tensor that it becomes, [rows, 1].
    """

    step: str
    features: str
    reads: str
    makes: Mapping[str, str]


@dataclass(frozen=True)
class SourceCall:
    """A store of features that is asked between two graphs, by code of the user's.

    Attributes:
        step: the stack's step that it is.
        source: "module:function", see `tristage.stack.FeatureSource`.
        settings: the function's keyword arguments.
        reads: the tensor of the ids, [rows, 1].
        dtype: the ids' type.
        makes: feature -> the tensor that it becomes, [rows, 1].
        dtypes: feature -> its NumPy type.
    """

    step: str
    source: str
    settings: Mapping[str, Any]
    reads: str
    dtype: str
    makes: Mapping[str, str]
    dtypes: Mapping[str, str]


Call = ForestCall | RecurrenceCall | SearchCall | CandidatesCall | FeaturesCall | SourceCall
"""What an engine, or another part that is no graph, answers."""

Part = str | ColumnsCall | Call
"""A graph's file, or what an engine answers."""


@dataclass(frozen=True)
class ProgramFile:
    """What `program.json` says.

    Attributes:
        parts: names of graphs' files, and what engines answer between them, in the order they are evaluated in.
        named: name of an answer -> the tensor it is.
    """

    parts: tuple[Part, ...]
    named: Mapping[str, str]

    def calls(self) -> list[ForestCall]:
        """Its forests."""
        return [part for part in self.parts if isinstance(part, ForestCall)]

    def to_json(self) -> str:
        """As text, the same for the same content."""
        parts = [{"graph": part} if isinstance(part, str) else asdict(part) for part in self.parts]
        return json.dumps({"parts": parts, "named": dict(self.named)}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> ProgramFile:
        """Read a program.

        Raises:
            OSError, ValueError, KeyError or TypeError: it is missing or is none.
        """
        said = json.loads(path.read_text(encoding="utf-8"))
        return cls(tuple(map(_part, said["parts"])), dict(said["named"]))


def _part(said: Mapping[str, Any]) -> Part:
    if "columns" in said:
        sides = {
            side: {name: (str(dtype), tuple(shape)) for name, (dtype, shape) in said[side].items()}
            for side in ("reads", "makes")
        }
        return ColumnsCall(said["columns"], said["graph"], tuple(said["tables"]), **sides)
    if "graph" in said:
        return str(said["graph"])
    if "recurrence" in said:
        return RecurrenceCall(**said)
    if "index" in said:
        return SearchCall(**said)
    if "candidates" in said:
        return CandidatesCall(**said)
    if "features" in said:
        return FeaturesCall(**said)
    if "source" in said:
        return SourceCall(**said)
    engines = tuple(Choice(**choice) for choice in said["engines"])
    if not engines or engines[-1].rows is not None:
        raise ValueError(f"no engine answers any number of rows of step {said['step']}")
    return ForestCall(**{**said, "engines": engines})


def read_calls(repository: Path, models: Iterable[str]) -> list[ForestCall]:
    """The forests between the graphs of a repository's models.

    Raises:
        RepositoryError: a model's program cannot be read.
    """
    calls: list[ForestCall] = []
    for model in models:
        file = repository / model / "1" / PROGRAM_FILE
        try:
            calls += ProgramFile.read(file).calls() if file.is_file() else []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RepositoryError(f"{file} cannot be read ({error!r}); export the stack again") from error
    return calls
