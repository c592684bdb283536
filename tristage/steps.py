"""The kinds of step, and what may be said of a raw list column.

What a step reads are references: `step.column`, `step` (all its columns, in order), `step.prefix_*` (a glob, in the
step's order) or, for a raw column of the request, its bare name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tristage.errors import StackError
from tristage.mean_weights import is_number, read_weights
from tristage.weights import WEIGHT_FORMATS

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
    "Step",
    "WorkflowStep",
    "names_of",
]

NET_BACKENDS = ("pytorch", "tensorflow")
_FEATURE_TYPES = ("float32", "float64", "int32", "int64")


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
        object.__setattr__(self, "reads", names_of(self.reads))
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
        reads = {tensor: names_of(columns) for tensor, columns in self.reads.items()}
        object.__setattr__(self, "reads", MappingProxyType(reads))
        if self.rewrites is not None:
            object.__setattr__(self, "rewrites", names_of(self.rewrites))

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
        object.__setattr__(self, "mean", names_of(self.mean))
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


@dataclass(frozen=True)
class TopKStep:
    """The best of a row's candidates: the k highest scores, highest first, and what else is known of those candidates.

    Its columns are `score0`, `score1`, ... (float32) and those of `carry`, numbered as well: `item0`, `item1`, ... of
    `item`, int64 where all its columns are whole numbers, else float32. With a `k` of 1 they are `score` and `item`.
    Of equal scores the earlier candidate's is the higher. A candidate whose score is NaN, or that the mask leaves out,
    is never taken; where fewer than k are left, scores and floats are NaN, and whole numbers -1.

    Attributes:
        top: the columns of scores, one for each candidate.
        k: how many are taken.
        carry: name -> the columns that hold it, one for each candidate in the order of `top`.
        mask: columns, one for each candidate: 0 or false leaves it out. None: all may be taken.
    """

    top: tuple[str, ...]
    k: int
    carry: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mask: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "top", names_of(self.top))
        carry = {name: names_of(references) for name, references in self.carry.items()}
        object.__setattr__(self, "carry", MappingProxyType(carry))
        if self.mask is not None:
            object.__setattr__(self, "mask", names_of(self.mask))
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise StackError(f"k is {self.k!r}; give how many candidates are taken, at least 1")
        odd = [name for name in self.carry if not name.isidentifier() or name == "score"]
        if odd:
            raise StackError(f"carry names {odd[0]!r}; give a name of letters and digits, other than score")

    def references(self) -> tuple[str, ...]:
        """Everything the step reads."""
        return (*self.top, *(name for names in self.carry.values() for name in names), *(self.mask or ()))


@dataclass(frozen=True)
class RetrieveStep:
    """The nearest neighbours of a row among the vectors of a Faiss index, as Faiss itself finds them.

    Its columns are `item0`, `item1`, ... (int64), the neighbours' numbers in the index or, under an `IndexIDMap`, their
    ids, nearest first; and `score0`, `score1`, ... (float32), what the index measures: an inner product, or a squared
    distance. Where fewer than `k` are found the rest are -1. With a `k` of 1 they are `item` and `score`.

    Attributes:
        index: the file that `faiss.write_index` wrote; in Python also the index itself.
        reads: the columns that make the query, side by side: as many numbers as the index's vectors have.
        k: how many neighbours are answered.
    """

    index: Any
    reads: tuple[str, ...]
    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", names_of(self.reads))
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise StackError(f"k is {self.k!r}; give the number of neighbours, at least 1")

    def references(self) -> tuple[str, ...]:
        """The query's columns."""
        return self.reads


@dataclass(frozen=True)
class CandidatesStep:
    """A stack that answers every candidate of a row: candidates are laid out as rows of their own, and asked about.

    Its columns are called after the stack's outputs, numbered as the candidates are: `click0`, `click1`, ... of an
    output `click`; only `click`, where there is one candidate.

    Attributes:
        stack: a `tristage.stack.Stack`, whose outputs are numbers, one for a candidate; its golden rows and what it
            says of Triton are not used.
        each: raw column of that stack -> the columns that hold its value for each candidate, in the same order
            everywhere: as many as there are candidates, or a list column of that length.
        shared: raw column of that stack -> the column that holds one value, or one list, for all of a row's candidates;
            several columns make a list.
    """

    stack: Any
    each: Mapping[str, tuple[str, ...]]
    shared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side in ("each", "shared"):
            reads = {column: names_of(references) for column, references in getattr(self, side).items()}
            object.__setattr__(self, side, MappingProxyType(reads))
        if not self.each:
            raise StackError("each names no column; say which raw column differs from candidate to candidate")
        twice = sorted(set(self.each) & set(self.shared))
        if twice:
            raise StackError(f"each and shared both name {twice[0]}; a raw column differs by candidate, or it does not")

    def references(self) -> tuple[str, ...]:
        """Everything that is read of the row."""
        return tuple(
            reference for side in (self.each, self.shared) for columns in side.values() for reference in columns
        )


@dataclass(frozen=True)
class FeatureSource:
    """A store of features that is asked with every request, by code of your own, instead of a table.

    Attributes:
        source: "module:function", which Triton imports. It is called once for each model that is opened, with the
            settings, and returns what is called with ids, a NumPy array [rows], and returns feature -> array [rows].
            It raises what it wants where it cannot answer: the request fails with that.
        columns: feature -> NumPy type, such as {"age": "float32"}.
        settings: the function's keyword arguments, which JSON can hold. No secrets: they lie in the repository.
    """

    source: str
    columns: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module, _, function = self.source.partition(":")
        if not module or not function.isidentifier():
            raise StackError(f"source is {self.source!r}; write it as module:function")
        for name, dtype in self.columns.items():
            if dtype not in _FEATURE_TYPES:
                raise StackError(f"feature {name} is {dtype!r}; choose one of {', '.join(_FEATURE_TYPES)}")
        if not self.columns:
            raise StackError("columns names no feature; say what the source answers, such as {age: float32}")
        try:
            json.dumps(dict(self.settings))
        except (TypeError, ValueError) as error:
            raise StackError(f"settings cannot be written as JSON ({error}); give texts and numbers") from error
        for attribute in ("columns", "settings"):
            object.__setattr__(self, attribute, MappingProxyType(dict(getattr(self, attribute))))


@dataclass(frozen=True)
class FeaturesStep:
    """Features of a thing by its id: the columns of a table that may be exchanged while it is served.

    Its columns are the table's, without the ids; a column of lists of one length is numbered, `taste0`, `taste1`, ...
    What NVTabular's JoinExternal answers is answered: whole numbers as float64, and NaN where an id is null, or not
    in the table.

    Attributes:
        features: the table's Parquet file, with one row for each id; in Python also a pandas.DataFrame or an Arrow
            table. Its features are numbers. Or a FeatureSource, whose answers are what is answered.
        key: the column that holds the ids, numbers or text.
        ids: what the table calls its ids; None: as `key` does, without the step that it is of.
    """

    features: Any
    key: str
    ids: str | None = None

    def references(self) -> tuple[str, ...]:
        """The ids' column."""
        return (self.key,)

    @property
    def id_column(self) -> str:
        """What the table calls its ids."""
        return self.ids or self.key.rpartition(".")[2]


Step = WorkflowStep | ForestStep | NetStep | MeanStep | TopKStep | RetrieveStep | CandidatesStep | FeaturesStep


def names_of(names: str | Iterable[str]) -> tuple[str, ...]:
    """One name, or several, as a tuple: a text is not a row of letters."""
    return (names,) if isinstance(names, str) else tuple(names)
