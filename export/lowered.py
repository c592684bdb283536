"""The vocabulary of lowered stacks: steps with every reference resolved and every artifact converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tristage.columns import Column
from tristage.export.candidates import Candidates
from tristage.export.feature_source import Sourced
from tristage.export.features import Features
from tristage.export.forest import ForestSet
from tristage.export.mean import Mean
from tristage.export.net import Net
from tristage.export.retrieval import Retrieval
from tristage.export.top_k import TopK
from tristage.export.workflow import CompiledWorkflow, InterpretedWorkflow
from tristage.stack import Stack

__all__ = ["Answer", "Body", "Feed", "LoweredStack", "LoweredStep", "Source", "Workflow"]


@dataclass(frozen=True)
class Source:
    """One column that is read: of a step, at a position among its columns, or a raw one (`step` None)."""

    step: str | None
    column: Column
    position: int = 0


@dataclass(frozen=True)
class Answer:
    """What an output of the stack is: one scalar column of a step, or several of one type as a list.

    Attributes:
        step: the step.
        sources: its columns, in order.
        column: the output.
    """

    step: str
    sources: tuple[Source, ...]
    column: Column


@dataclass(frozen=True)
class Feed:
    """One tensor that a step's body takes: columns side by side in one dtype.

    Attributes:
        name: the body's name for it.
        sources: the columns, in order.
        dtype: the tensor's dtype.
        flat: whether the body wants [rows] rather than [rows, width].
    """

    name: str
    sources: tuple[Source, ...]
    dtype: str
    flat: bool = False


@dataclass(frozen=True)
class Workflow:
    """A fitted workflow and how it is served: compiled, or where that cannot be, by NVTabular itself."""

    fitted: Any
    served: CompiledWorkflow | InterpretedWorkflow


Body = Workflow | ForestSet | Net | Mean | TopK | Retrieval | Candidates | Features | Sourced


@dataclass(frozen=True)
class LoweredStep:
    """A step with its references resolved and its artifact converted.

    Attributes:
        name: the step's name.
        body: what it computes.
        feeds: what it reads.
        columns: what it makes; a model's are scalars, and float32 but for whole numbers and booleans of nets.
    """

    name: str
    body: Body
    feeds: tuple[Feed, ...]
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class LoweredStack:
    """A stack ready to be placed.

    Attributes:
        stack: the stack.
        steps: its steps, each after those it reads.
        outputs: what it answers, by name, in order.
        tables: the folder that large tables were written to.
    """

    stack: Stack
    steps: tuple[LoweredStep, ...]
    outputs: Mapping[str, Answer]
    tables: Path | None = None
