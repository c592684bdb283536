"""The stack: a directed graph of named steps over named columns, declared in Python or in stack.yaml.

A step reads columns and makes columns. References are written `step.column`, `step` (all its columns, in order),
`step.prefix_*` (a glob, in the step's order) or, for a raw column of the request, its bare name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tristage.errors import StackError
from tristage.steps import (
    NET_BACKENDS,
    CandidatesStep,
    FeatureSource,
    FeaturesStep,
    ForestStep,
    ListInput,
    MeanStep,
    NetStep,
    RetrieveStep,
    Step,
    TopKStep,
    WorkflowStep,
    names_of,
)
from tristage.triton_settings import TritonSettings

__all__ = [
    "NET_BACKENDS",
    "CandidatesStep",
    "FeatureSource",
    "FeaturesStep",
    "ForestStep",
    "ListInput",
    "MeanStep",
    "NetStep",
    "RetrieveStep",
    "Stack",
    "Step",
    "TopKStep",
    "WorkflowStep",
    "split_reference",
]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Stack:
    """A trained stack, checked when it is built.

    Attributes:
        name: letters, digits and underscores; the served ensemble's name.
        steps: name -> step, in any order.
        outputs: name of an output -> the column it answers, as `step.column`; a glob, `step.items*`, answers all that
            it matches as one list, in the step's order.
        targets: names of what is predicted; a model with as many outputs names its columns after them.
        inputs: list columns' lengths and pads.
        golden: Parquet file of held-out raw rows that the training libraries are asked about, at export.
        triton: how Triton is to run the models, where the exporter shall not choose.
    """

    name: str
    steps: Mapping[str, Step]
    outputs: Mapping[str, str]
    targets: tuple[str, ...] = ()
    inputs: Mapping[str, ListInput] = field(default_factory=dict)
    golden: Path | str | None = None
    triton: TritonSettings = field(default_factory=TritonSettings)

    def __post_init__(self) -> None:
        for attribute in ("steps", "outputs", "inputs"):
            object.__setattr__(self, attribute, MappingProxyType(dict(getattr(self, attribute))))
        object.__setattr__(self, "targets", names_of(self.targets))
        for name in (self.name, *self.steps, *self.outputs):
            if not _NAME.fullmatch(name):
                raise StackError(f"{name!r} is not a name; use letters, digits and underscores, a letter first")
        if not self.steps:
            raise StackError(f"stack {self.name} has no steps; give it at least one forest or net")
        if not self.outputs:
            raise StackError(
                f"stack {self.name} has no outputs; name at least one, such as outputs: {{like: score.like}}"
            )
        for name, step in self.steps.items():
            if isinstance(step, CandidatesStep) and not isinstance(step.stack, Stack):
                raise StackError(
                    f"step {name}: its stack is a {type(step.stack).__name__}; give a tristage.stack.Stack", step=name
                )
        self._check_references()
        for name in self.triton.steps:
            if name not in self.steps:
                raise StackError(f"triton names a step {name}, and there is none; steps are {', '.join(self.steps)}")
        self._drop_weightless()
        self._check_used()
        for name, step in self.steps.items():
            if isinstance(step, NetStep) and step.weights is not None and self.golden is None:
                raise StackError(
                    f"step {name} has {step.weights} weights, which answer otherwise than it was trained to; name "
                    "golden rows to measure by how much: golden: held_out_rows.parquet",
                    step=name,
                )

    @classmethod
    def from_merlin(
        cls,
        graph: Any,
        *,
        name: str | None = None,
        inputs: Mapping[str, ListInput] | None = None,
        golden: Path | str | None = None,
        trust: bool = False,
    ) -> Stack:
        """A Merlin Systems 23.8 graph as a stack: same columns in, same answers out. It needs the extra `export`.

        Args:
            graph: a `merlin.systems.dag.Ensemble`, its last node (`columns >> TransformWorkflow(workflow) >>
                PredictForest(booster, schema)`), or the folder that `Ensemble.export` wrote.
            name: the served ensemble's name; Merlin's, which is executor_model unless it was given another.
            inputs: list columns' lengths and pads.
            golden: Parquet file of held-out raw rows, which a Merlin graph has none of.
            trust: whether a folder may be read, which runs what its pickles say.

        Raises:
            StackError: an operator cannot be carried over; the message names it and says what to do instead.
            ArtifactError: a model of the graph cannot be read, or the folder is not trusted.
        """
        from tristage.export.merlin import read_merlin

        return read_merlin(graph, name=name, inputs=inputs, golden=golden, trust=trust)

    def order(self) -> tuple[str, ...]:
        """The steps' names, each after those it reads.

        Raises:
            StackError: the steps form a cycle; the message shows it.
        """
        graph = {name: sorted(self.reads_steps(name)) for name in self.steps}
        try:
            return tuple(TopologicalSorter(graph).static_order())
        except CycleError as error:
            cycle = " -> ".join(reversed(error.args[1]))
            raise StackError(
                f"steps of stack {self.name} read each other in a circle: {cycle}; a step can only read earlier steps",
                step=error.args[1][0],
            ) from None

    def reads_steps(self, name: str) -> set[str]:
        """The steps that step `name` reads."""
        return {step for step, _ in map(split_reference, self.steps[name].references()) if step in self.steps}

    def _check_references(self) -> None:
        for name, step in self.steps.items():
            for reference in step.references():
                self._check_reference(reference, f"step {name}", name)
        for output, reference in self.outputs.items():
            step_name, column = split_reference(reference)
            if step_name not in self.steps or column is None:
                raise StackError(
                    f"output {output} is {reference!r}; write it as step.column with one of the steps "
                    f"{', '.join(self.steps)}"
                )
        self.order()

    def _check_reference(self, reference: str, where: str, step: str) -> None:
        source, column = split_reference(reference)
        if column is not None and source not in self.steps:
            raise StackError(
                f"{where} reads {reference!r}, but there is no step {source!r}; steps are {', '.join(self.steps)}",
                step=step,
            )

    def _drop_weightless(self) -> None:
        """Leave out steps that a mean gives no weight, and what only they read."""
        means = [step for step in self.steps.values() if isinstance(step, MeanStep)]
        weightless = {split_reference(name)[0] for step in means for name in set(step.mean) - set(step.references())}
        gone = self._feeding(weightless) - self._feeding(self._answering())
        kept = {name: step for name, step in self.steps.items() if name not in gone}
        object.__setattr__(self, "steps", MappingProxyType(kept))

    def _answering(self) -> set[str]:
        return {split_reference(reference)[0] for reference in self.outputs.values()}

    def _feeding(self, steps: set[str]) -> set[str]:
        """Steps, and every step that they read, straight or through others."""
        found = set(steps)
        for name in reversed(self.order()):
            if name in found:
                found |= self.reads_steps(name)
        return found

    def _check_used(self) -> None:
        used = self._feeding(self._answering())
        for name in self.steps:
            if name not in used:
                bare = {reference for step in self.steps.values() for reference in step.references()} - set(self.steps)
                near = difflib.get_close_matches(name, bare, n=1)
                hint = f" (a step reads {near[0]}: is {name} meant?)" if near else ""
                raise StackError(f"nobody reads step {name}{hint}; remove it, or name it in outputs", step=name)


def split_reference(reference: str) -> tuple[str, str | None]:
    """`step.column` as (step, column); a bare name as (name, None)."""
    source, dot, column = reference.partition(".")
    return (source, column) if dot else (source, None)
