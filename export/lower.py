"""artifacts -> lowered steps: every reference resolved, every artifact converted to its standard form."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from tristage.columns import Column
from tristage.errors import ArtifactError, StackError
from tristage.export.forest import ForestSet, read_forests
from tristage.export.forest.read import find_forests
from tristage.export.mean import Mean
from tristage.export.net import Net, read_net
from tristage.export.net.backends import check_backend, write_native
from tristage.export.net.outputs import column_dtypes, column_names, score_names
from tristage.export.net.read import find_converter
from tristage.export.rewrites import check_names, rewrite
from tristage.export.weights import Narrowed, narrow
from tristage.export.workflow import (
    CompiledWorkflow,
    InterpretedWorkflow,
    NoLowering,
    compile_workflow,
    interpret,
    raw_columns,
)
from tristage.export.workflow.read import find_workflow, folder_of, open_workflow
from tristage.stack import ForestStep, MeanStep, NetStep, Stack, WorkflowStep, split_reference

__all__ = ["Answer", "Body", "Feed", "LoweredStack", "LoweredStep", "Mean", "Source", "Workflow", "lower", "narrowed"]

_GLOB = re.compile(r"[*?\[]")


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


Body = Workflow | ForestSet | Net | Mean


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


def lower(
    stack: Stack,
    golden: Mapping[str, Column],
    on_step: Callable[[str], None] = lambda _: None,
    *,
    rows: Any = None,
    trust: bool = False,
    tables: Path | None = None,
    native: bool = False,
) -> LoweredStack:
    """Read and convert every artifact of a stack.

    Args:
        stack: the stack.
        golden: the columns of its golden rows, which say which raw columns hold nulls, and the types of raw columns
            that no workflow reads.
        on_step: called with a step's name before it is lowered.
        rows: the golden rows as a pandas.DataFrame, which say what columns NVTabular makes where it serves a workflow
            itself; None without golden rows.
        trust: whether saved workflows and pickled forests may be read, which runs what their pickle says.
        tables: the folder that large tables are written to; None keeps all in memory.
        native: whether Triton's own backends serve it, which are given texts and no fingerprints of them.

    Raises:
        StackError: a step reads a column that nobody makes, or a wrong number of them.
        ArtifactError: an artifact cannot be read or converted.
    """
    _find_artifacts(stack, trust)
    steps: dict[str, LoweredStep] = {}
    raw: dict[str, Column] = {}
    for name in stack.order():
        on_step(name)
        step = stack.steps[name]
        reader = _Reader(name, stack, steps, raw, golden)
        match step:
            case WorkflowStep():
                steps[name] = _lower_workflow(name, step, stack, golden, raw, rows, tables, native)
            case ForestStep():
                steps[name] = _lower_forest(name, step, stack, reader, trust)
            case NetStep():
                steps[name] = _lower_net(name, step, stack, reader, tables, native)
            case MeanStep():
                steps[name] = _lower_mean(name, step, reader)
    reader = _Reader("", stack, steps, raw, golden)
    outputs = {name: reader.answer(name, reference) for name, reference in stack.outputs.items()}
    strange = [name for name in stack.inputs if name not in raw and name not in golden]
    if strange:
        near = difflib.get_close_matches(strange[0], list(raw), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"raw columns are {_some(list(raw))}"
        raise StackError(f"inputs names {strange[0]}, which is no raw column that the stack reads; {hint}")
    return LoweredStack(stack, tuple(steps.values()), outputs, tables)


def _find_artifacts(stack: Stack, trust: bool) -> None:
    """Look for every file first: a missing one is said at once, not after the others have been converted."""
    for name, step in stack.steps.items():
        match step:
            case WorkflowStep(workflow=artifact):
                find_workflow(name, artifact, trust)
            case ForestStep(forest=artifact):
                find_forests(name, artifact, grouped=step.group is not None, trust=trust)
            case NetStep(net=artifact):
                find_converter(name, artifact)
                if step.backend is not None:
                    check_backend(name, step.backend, artifact)
            case MeanStep():
                pass


class _Reader:
    """Resolves the references of one step against the steps before it."""

    def __init__(
        self,
        name: str,
        stack: Stack,
        steps: Mapping[str, LoweredStep],
        raw: dict[str, Column],
        golden: Mapping[str, Column],
    ) -> None:
        self._name, self._stack, self._steps, self._raw, self._golden = name, stack, steps, raw, golden

    def many(self, references: Iterable[str]) -> list[Source]:
        """Every column that references stand for, each once, in order."""
        sources = [source for reference in references for source in self._expand(reference, f"step {self._name}")]
        return list(dict.fromkeys(sources))

    def one(self, reference: str, where: str) -> Source:
        """The one scalar column a reference stands for."""
        sources = self._expand(reference, where)
        if len(sources) != 1 or sources[0].column.length is not None:
            raise StackError(f"{where} needs one scalar column, but {reference!r} is {len(sources)} columns or a list")
        return sources[0]

    def answer(self, name: str, reference: str) -> Answer:
        """What an output is: the one scalar column a reference stands for, or with a glob a list of all it matches."""
        where = f"output {name}"
        step, pattern = split_reference(reference)
        if pattern is None or not _GLOB.search(pattern):
            source = self.one(reference, where)
            return Answer(step, (source,), Column(name, source.column.dtype))
        sources = self._expand(reference, where)
        lists = [source.column.name for source in sources if source.column.length is not None]
        if lists:
            raise StackError(f"{where} is {reference!r}, but {lists[0]} holds lists; a list is made of scalar columns")
        dtypes = dict.fromkeys(source.column.dtype for source in sources)
        if len(dtypes) > 1:
            raise StackError(
                f"{where} is {reference!r}, which stands for columns of {' and '.join(dtypes)} "
                f"({_some([source.column.name for source in sources])}); a list holds one type: write one for each"
            )
        return Answer(step, tuple(sources), Column(name, sources[0].column.dtype, len(sources)))

    def _expand(self, reference: str, where: str) -> list[Source]:
        step, pattern = split_reference(reference)
        if step not in self._steps:
            return [self._raw_source(reference, where)]
        columns = self._steps[step].columns
        sources = [Source(step, column, position) for position, column in enumerate(columns)]
        if pattern is None:
            return sources
        matches = [source for source in sources if fnmatch.fnmatchcase(source.column.name, pattern)]
        if not matches:
            why = _unserved(self._steps[step]).get(pattern)
            if why is not None:
                raise StackError(f"{where} reads {reference}, which {why}", step=self._name or None)
            near = difflib.get_close_matches(pattern, [column.name for column in columns], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {_some([c.name for c in columns])}"
            raise StackError(
                f"{where} reads {reference}, but step {step} has no such column; {hint}", step=self._name or None
            )
        return matches

    def _raw_source(self, name: str, where: str) -> Source:
        column = self._raw.get(name) or self._golden.get(name)
        if column is None:
            known = _some([*self._steps, *self._raw])
            raise StackError(
                f"{where} reads {name}, which is neither a step nor a raw column of a workflow or of the golden rows; "
                f"known are {known}",
                step=self._name or None,
            )
        options = self._stack.inputs.get(name)
        if column.length is not None:
            if options is None:
                raise StackError(
                    f"raw column {name} holds lists; say how long they may be: inputs: {{{name}: {{max_length: N}}}}"
                )
            pad = column.pad if options.pad is None else options.pad
            column = Column(name, column.dtype, options.max_length, pad)
        self._raw[name] = column
        return Source(None, column)


def _lower_workflow(
    name: str,
    step: WorkflowStep,
    stack: Stack,
    golden: Mapping[str, Column],
    raw: dict[str, Column],
    rows: Any,
    tables: Path | None,
    native: bool,
) -> LoweredStep:
    fitted = open_workflow(name, step.workflow)
    nullable = frozenset(column.name for column in golden.values() if column.nullable)
    served: CompiledWorkflow | InterpretedWorkflow
    try:
        columns = raw_columns(fitted, stack.inputs, nullable, golden)
        try:
            served = compile_workflow(fitted, columns, tables, native=native)
            made = served.outputs
        except NoLowering as lack:
            served, made = interpret(fitted, folder_of(step.workflow, lack.reason), columns, rows, lack.reason)
    except ArtifactError as error:
        raise ArtifactError(f"step {name}: {error}", path=error.path) from error
    raw.update({column.name: column for column in columns})
    feeds = tuple(Feed(column.name, (Source(None, column),), column.wire_dtype) for column in columns)
    return LoweredStep(name, Workflow(fitted, served), feeds, made)


def _unserved(step: LoweredStep) -> Mapping[str, str]:
    served = step.body.served if isinstance(step.body, Workflow) else None
    return served.unserved if isinstance(served, InterpretedWorkflow) else {}


def _lower_forest(name: str, step: ForestStep, stack: Stack, reader: _Reader, trust: bool) -> LoweredStep:
    forests = read_forests(
        name,
        step.forest,
        stack.targets,
        step.group is not None,
        average=step.average,
        margins=step.margins,
        trust=trust,
    )
    candidates = reader.many(step.reads)
    first = forests.all()[0]
    sources = _features(name, first.names, first.features, candidates)
    for source in sources:
        if source.column.length is not None or source.column.dtype == "string":
            kind = "lists" if source.column.length is not None else "text"
            raise StackError(
                f"step {name} reads {source.column.name}, which holds {kind}; a forest reads numbers", step=name
            )
    feeds = [Feed("rows", tuple(sources), "float32")]
    if step.group is not None:
        chooser = reader.one(step.group, f"group of step {name}")
        if chooser.column.dtype.startswith("float"):
            raise StackError(
                f"step {name}: group column {step.group} is {chooser.column.dtype}; use whole numbers or text",
                step=name,
            )
        if chooser.column.dtype != "string":
            for group in forests.groups:
                if not re.fullmatch(r"-?\d+", str(group)):
                    raise StackError(
                        f"step {name}: there is a forest of group {group}, which is not a whole number as the group "
                        f"column {step.group} ({chooser.column.dtype}) is; rename its file",
                        step=name,
                    )
        feeds.append(Feed("group", (chooser,), "string" if chooser.column.dtype == "string" else "int64"))
    made = [target for target in forests.targets if target is not None] or score_names(first.outputs, stack.targets)
    if forests.margins:
        count = forests.width - forests.outputs
        made += [f"{column}_margin" for column in made] if count == len(made) else [f"margin{n}" for n in range(count)]
    return LoweredStep(name, forests, tuple(feeds), tuple(Column(column, "float32") for column in made))


def _features(step: str, names: Sequence[str] | None, count: int, candidates: Sequence[Source]) -> list[Source]:
    """The columns a forest's features are, by their names where it has them, else all columns in order."""
    if names is None:
        if len(candidates) != count:
            raise StackError(
                f"step {step} reads {len(candidates)} columns, its forest takes {count} features", step=step
            )
        return list(candidates)
    by_name: dict[str, list[Source]] = {}
    for source in candidates:
        by_name.setdefault(source.column.name, []).append(source)
        if source.step is not None:
            by_name.setdefault(f"{source.step}.{source.column.name}", []).append(source)
    unknown = [name for name in names if name not in by_name]
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(by_name), n=3)
        hint = f" (near {unknown[0]}: {', '.join(near)})" if near else ""
        raise StackError(
            f"step {step}: its forest was trained on {_some(unknown)}, which it does not read{hint}; add to reads",
            step=step,
        )
    ambiguous = [name for name in names if len(by_name[name]) > 1]
    if ambiguous:
        owners = ", ".join(str(source.step) for source in by_name[ambiguous[0]])
        raise StackError(f"step {step}: feature {ambiguous[0]} could be of {owners}; read fewer columns", step=step)
    return [by_name[name][0] for name in names]


def _lower_net(
    name: str, step: NetStep, stack: Stack, reader: _Reader, tables: Path | None, native: bool
) -> LoweredStep:
    if step.rewrites is not None:
        check_names(step.rewrites, f"step {name}")
    if step.backend is not None and native and tables is not None:
        net = write_native(name, step.backend, step.net, tables, step.examples)
    else:
        net = read_net(name, step.net, tables, step.examples)
        model, rewritten = rewrite(net.model, tables, step.rewrites, engine=not native)
        weights = None if step.weights is None else _narrow(net.model, tables, step.rewrites, step.weights, not native)
        net = dataclasses.replace(net, model=model, rewritten=rewritten, narrow=weights)
    inputs = {tensor.name: tensor for tensor in net.inputs}
    for given in step.reads:
        if given not in inputs:
            raise StackError(f"step {name} feeds {given}, but its net has the inputs {', '.join(inputs)}", step=name)
    feeds = []
    for tensor in net.inputs:
        if tensor.name not in step.reads:
            raise StackError(f"step {name} feeds nothing to its net's input {tensor.name}; add it to reads", step=name)
        sources = reader.many(step.reads[tensor.name])
        width = sum(source.column.width for source in sources)
        if any(source.column.dtype == "string" for source in sources):
            raise StackError(f"step {name}: input {tensor.name} reads text; a net reads numbers", step=name)
        if tensor.width is None and (len(sources) != 1 or sources[0].column.length is not None):
            raise StackError(
                f"step {name}: input {tensor.name} takes one scalar column, not {width} values a row", step=name
            )
        if tensor.width and tensor.width != width:
            raise StackError(
                f"step {name}: input {tensor.name} takes {tensor.width} values a row, its columns give {width} "
                f"({_some([source.column.name for source in sources])})",
                step=name,
            )
        feeds.append(Feed(tensor.name, tuple(sources), tensor.dtype, flat=tensor.width is None))
    names = column_names(net.outputs, stack.targets)
    columns = tuple(map(Column, names, column_dtypes(net.outputs)))
    return LoweredStep(name, net, tuple(feeds), columns)


def _narrow(
    model: onnx.ModelProto, tables: Path | None, names: Sequence[str] | None, weights: str, engine: bool
) -> Narrowed:
    """The same rewrites, and narrow weights."""
    found: list[Narrowed] = []
    made, _ = rewrite(model, tables, names, engine=engine, change=lambda graph: found.append(narrow(graph, weights)))
    return dataclasses.replace(found[0], model=made)


def narrowed(lowered: LoweredStack) -> LoweredStack:
    """The stack as it is served: with narrow weights where they were asked for."""
    steps = []
    for step in lowered.steps:
        if isinstance(step.body, Net) and step.body.narrow is not None:
            assert step.body.narrow.model is not None
            step = dataclasses.replace(step, body=dataclasses.replace(step.body, model=step.body.narrow.model))
        steps.append(step)
    return dataclasses.replace(lowered, steps=tuple(steps))


def _lower_mean(name: str, step: MeanStep, reader: _Reader) -> LoweredStep:
    references = step.references()
    groups = [reader.many([reference]) for reference in references]
    names = [[source.column.name for source in sources] for sources in groups]
    for reference, other in zip(references, names, strict=True):
        if sorted(other) != sorted(names[0]):
            raise StackError(
                f"step {name} averages {references[0]} ({_some(names[0])}) with {reference} ({_some(other)})", step=name
            )
    feeds = []
    for number, sources in enumerate(groups):
        by_name = {source.column.name: source for source in sources}
        feeds.append(Feed(f"of{number}", tuple(by_name[column] for column in names[0]), "float32"))
    body = Mean(step.shares(), step.average == "logits", step.temperature, step.bias)
    return LoweredStep(name, body, tuple(feeds), tuple(Column(column, "float32") for column in names[0]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
