"""The stack: a directed graph of named steps over named columns, declared in Python or in stack.yaml.

A step reads columns and makes columns. References are written `step.column`, `step` (all its columns, in order),
`step.prefix_*` (a glob, in the step's order) or, for a raw column of the request, its bare name.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tristage.errors import StackError
from tristage.mean_weights import is_number, read_weights
from tristage.triton_settings import TritonSettings
from tristage.weights import WEIGHT_FORMATS

__all__ = [
    "NET_BACKENDS",
    "ForestStep",
    "ListInput",
    "MeanStep",
    "NetStep",
    "Stack",
    "Step",
    "WorkflowStep",
    "split_reference",
]

NET_BACKENDS = ("pytorch", "tensorflow")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class ListInput:
    """What an artifact cannot say of a raw list column: how long it may be, and what fills it up.

    Attributes:
        max_length: elements a list may have; a client cuts longer ones, and says so.
        pad: the value that fills a shorter list (0 for integers, NaN for floats, "" for strings when None).
    """

    max_length: int
    pad: int | float | str | None = None

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise StackError(f"max_length is {self.max_length}; a list column needs room for at least one element")


@dataclass(frozen=True)
class WorkflowStep:
    """Preprocessing: a fitted NVTabular workflow, or the folder it was saved to. Reads raw columns."""

    workflow: Any

    def references(self) -> tuple[str, ...]:
        """A workflow names its raw columns itself."""
        return ()


@dataclass(frozen=True)
class ForestStep:
    """Trees: one forest, or one per target, a bag of them, and a set per group.

    Attributes:
        forest: a file, or a pattern with any of `{target}`, `{bag}` and `{group}` in it, such as
            `xgb1/{target}-{bag}.ubj`. In Python also a model in memory; a list of models is a bag, a dict has one or a
            bag for each target; with `group`, a dict has any of these for each group.
        reads: the columns to take features from; a forest that knows its features' names finds them by name.
        group: the column whose value chooses the `{group}` that answers a row.
        average: what a bag averages: "predictions", or "margins", of which it then makes one prediction.
        margins: answer the margins too (what trees sum up to, before a sigmoid, say), in columns after the predictions.
    """

    forest: Any
    reads: tuple[str, ...]
    group: str | None = None
    average: str = "predictions"
    margins: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", _names(self.reads))
        if self.average not in ("predictions", "margins"):
            raise StackError(f"average is {self.average!r}; a bag averages predictions or margins")

    def references(self) -> tuple[str, ...]:
        """What the step reads, the group's column last."""
        return self.reads if self.group is None else (*self.reads, self.group)


@dataclass(frozen=True)
class NetStep:
    """A neural net: a file or folder (.keras, .pt2, .pt, .onnx, SavedModel), or in Python the model itself.

    Attributes:
        net: the artifact.
        reads: the net's input name -> the columns that make it, side by side.
        rewrites: names of the exact rewrites that its graph may have, see `tristage.export.rewrites`; None allows all.
        examples: a torch.nn.Module or TorchScript does not say what it reads: some rows of every input, input name ->
            array or tensor of [rows] or [rows, width], or the .npz file of them. Others need none.
        backend: one of NET_BACKENDS: on the targets `ngc-cpu` and `ngc-gpu` that framework's own Triton backend serves
            the net, as TorchScript or a SavedModel; None serves it as ONNX there too, as all other targets do.
        weights: one of WEIGHT_FORMATS, to store its tables and matrices so; None leaves them as they were trained. It
            is not exact: the difference is measured on the golden rows, and stands in the manifest.
    """

    net: Any
    reads: Mapping[str, tuple[str, ...]]
    rewrites: tuple[str, ...] | None = None
    examples: Any = None
    backend: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and self.weights not in WEIGHT_FORMATS:
            raise StackError(
                f"there are no weights of {self.weights!r}; choose one of {', '.join(WEIGHT_FORMATS)}, or leave it out"
            )
        if self.weights is not None and self.backend is not None:
            raise StackError(
                f"a net on Triton's {self.backend} backend has its weights as they were trained; leave weights or "
                "backend out"
            )
        if self.backend is not None and self.backend not in NET_BACKENDS:
            raise StackError(
                f"there is no backend {self.backend!r} for a net; choose {' or '.join(NET_BACKENDS)}, or leave it out: "
                "ONNX Runtime serves it then"
            )
        reads = {tensor: _names(columns) for tensor, columns in self.reads.items()}
        object.__setattr__(self, "reads", MappingProxyType(reads))
        if self.rewrites is not None:
            object.__setattr__(self, "rewrites", _names(self.rewrites))

    def references(self) -> tuple[str, ...]:
        """Everything the step reads."""
        return tuple(reference for columns in self.reads.values() for reference in columns)


@dataclass(frozen=True)
class MeanStep:
    """The mean of several steps, column by column; the steps have columns of the same names.

    Attributes:
        mean: the steps.
        weights: step -> weight, or the JSON file of such an object, as a search for weights leaves it; they need not
            sum to 1. A step of weight 0 is not served, nor what only it reads. None: all weigh the same.
        average: "predictions"; or "logits", which are log(p / (1 - p)) of predictions between 0 and 1: their mean's
            sigmoid is answered. Predictions are taken to be at least 2**-24 from 0 and from 1. Or "margins": the same
            of the logits that the steps answer themselves, in columns `<name>_margin` (of a forest with `margins`, or
            of a net that has outputs of that name), which are exact near 0 and 1 too; the mean's columns are `<name>`.
        temperature: what the mean's logit is divided by, before the sigmoid.
        bias: what is added to it then.
    """

    mean: tuple[str, ...]
    weights: Mapping[str, float] | Path | str | None = None
    average: str = "predictions"
    temperature: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _names(self.mean))
        if self.weights is not None:
            object.__setattr__(self, "weights", MappingProxyType(read_weights(self.weights, self.mean)))
        if self.average not in ("predictions", "logits", "margins"):
            raise StackError(f"average is {self.average!r}; give predictions, logits or margins")
        for name in ("temperature", "bias"):
            value = getattr(self, name)
            if not is_number(value) or (name == "temperature" and value <= 0):
                raise StackError(f"{name} is {value!r}; give a number{' above 0' if name == 'temperature' else ''}")

    def references(self) -> tuple[str, ...]:
        """The steps averaged, without those of weight 0."""
        if self.weights is None:
            return self.mean
        assert isinstance(self.weights, Mapping)
        return tuple(name for name in self.mean if self.weights[name] != 0)

    def shares(self) -> tuple[float, ...] | None:
        """What each of the references weighs, of 1 in all; None where all weigh the same."""
        if self.weights is None:
            return None
        assert isinstance(self.weights, Mapping)
        total = math.fsum(self.weights.values())
        return tuple(self.weights[name] / total for name in self.references())


Step = WorkflowStep | ForestStep | NetStep | MeanStep


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
        object.__setattr__(self, "targets", _names(self.targets))
        for name in (self.name, *self.steps, *self.outputs):
            if not _NAME.fullmatch(name):
                raise StackError(f"{name!r} is not a name; use letters, digits and underscores, a letter first")
        if not self.steps:
            raise StackError(f"stack {self.name} has no steps; give it at least one forest or net")
        if not self.outputs:
            raise StackError(
                f"stack {self.name} has no outputs; name at least one, such as outputs: {{like: score.like}}"
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


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    """One name, or several, as a tuple: a text is not a row of letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def split_reference(reference: str) -> tuple[str, str | None]:
    """`step.column` as (step, column); a bare name as (name, None)."""
    source, dot, column = reference.partition(".")
    return (source, column) if dot else (source, None)
