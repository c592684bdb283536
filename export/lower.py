"""artifacts -> lowered steps: every reference resolved, every artifact converted to its standard form."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from tristage.columns import Column
from tristage.errors import ArtifactError, StackError
from tristage.export.combine import MARGIN, lower_mean, lower_top_k
from tristage.export.feature_source import open_for_export
from tristage.export.feature_tables import lower_table, one_id
from tristage.export.features import IDS, find_table
from tristage.export.forest import read_forests
from tristage.export.forest.read import find_forests
from tristage.export.lowered import Feed, LoweredStack, LoweredStep, Source, Workflow
from tristage.export.nested import nest, within
from tristage.export.net import Net, read_net
from tristage.export.net.backends import check_backend, write_native
from tristage.export.net.outputs import column_dtypes, column_names, score_names
from tristage.export.net.read import find_converter
from tristage.export.references import Reader, some
from tristage.export.retrieval import QUERY, find_index, read_index
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
from tristage.stack import (
    CandidatesStep,
    FeatureSource,
    FeaturesStep,
    ForestStep,
    MeanStep,
    NetStep,
    RetrieveStep,
    Stack,
    TopKStep,
    WorkflowStep,
)

__all__ = ["lower", "narrowed"]


def lower(
    stack: Stack,
    golden: Mapping[str, Column],
    on_step: Callable[[str], None] = lambda _: None,
    *,
    rows: Any = None,
    trust: bool = False,
    tables: Path | None = None,
    native: bool = False,
    within_step: bool = False,
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
        within_step: whether a step asks it about candidates, which takes a workflow that can be compiled.

    Raises:
        StackError: a step reads a column that nobody makes, or a wrong number of them.
        ArtifactError: an artifact cannot be read or converted.
    """
    _find_artifacts(stack, trust, native)
    steps: dict[str, LoweredStep] = {}
    raw: dict[str, Column] = {}
    for name in stack.order():
        on_step(name)
        step = stack.steps[name]
        reader = Reader(name, stack, steps, raw, golden)
        match step:
            case WorkflowStep():
                steps[name] = _lower_workflow(name, step, stack, golden, raw, rows, tables, native, within_step)
            case ForestStep():
                steps[name] = _lower_forest(name, step, stack, reader, trust)
            case NetStep():
                steps[name] = _lower_net(name, step, stack, reader, tables, native)
            case MeanStep():
                steps[name] = lower_mean(name, step, reader)
            case TopKStep():
                steps[name] = lower_top_k(name, step, reader)
            case RetrieveStep():
                steps[name] = _lower_retrieval(name, step, reader, tables)
            case FeaturesStep(features=FeatureSource()):
                steps[name] = _lower_source(name, step, reader, trust)
            case FeaturesStep():
                assert tables is not None, "a table's program is a folder beside the tables"
                steps[name] = lower_table(name, step, reader, partial(lower, tables=tables), tables)
            case CandidatesStep():
                assert tables is not None, "a candidates step's program is a folder beside the tables"
                steps[name] = nest(
                    name, step, reader, partial(lower, trust=trust, tables=tables, within_step=True), tables
                )
    reader = Reader("", stack, steps, raw, golden)
    outputs = {name: reader.answer(name, reference) for name, reference in stack.outputs.items()}
    strange = [name for name in stack.inputs if name not in raw and name not in golden]
    if strange:
        near = difflib.get_close_matches(strange[0], list(raw), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"raw columns are {some(list(raw))}"
        raise StackError(f"inputs names {strange[0]}, which is no raw column that the stack reads; {hint}")
    return LoweredStack(stack, tuple(steps.values()), outputs, tables)


_ONLY_HERE = {
    RetrieveStep: "searches a Faiss index",
    CandidatesStep: "answers candidates",
    FeaturesStep: "looks up features that may be exchanged",
}


def _find_artifacts(stack: Stack, trust: bool, native: bool) -> None:
    """Look for every file first: a missing one is said at once, not after the others have been converted."""
    for name, step in stack.steps.items():
        match step:
            case RetrieveStep() | CandidatesStep() | FeaturesStep() if native:
                what = _ONLY_HERE[type(step)]
                raise StackError(
                    f"step {name} {what}, which none of the container's own backends does; export the stack for "
                    "pip-cpu, or leave the step out",
                    step=name,
                )
            case WorkflowStep(workflow=artifact):
                find_workflow(name, artifact, trust)
            case ForestStep(forest=artifact):
                find_forests(name, artifact, grouped=step.group is not None, trust=trust)
            case NetStep(net=artifact):
                find_converter(name, artifact)
                if step.backend is not None:
                    check_backend(name, step.backend, artifact)
            case RetrieveStep(index=artifact):
                find_index(name, artifact)
            case FeaturesStep(features=FeatureSource()):
                pass
            case FeaturesStep(features=artifact):
                find_table(name, artifact)
            case CandidatesStep(stack=inner):
                with within(name):
                    _find_artifacts(inner, trust, native)
            case MeanStep() | TopKStep():
                pass


def _lower_workflow(
    name: str,
    step: WorkflowStep,
    stack: Stack,
    golden: Mapping[str, Column],
    raw: dict[str, Column],
    rows: Any,
    tables: Path | None,
    native: bool,
    within_step: bool,
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
            if within_step:
                raise ArtifactError(
                    f"{lack.reason}, so that it cannot be compiled; candidates are asked of compiled workflows only: "
                    "write a lowering, see docs/custom_operators.md"
                ) from lack
            served, made = interpret(fitted, folder_of(step.workflow, lack.reason), columns, rows, lack.reason)
    except ArtifactError as error:
        raise ArtifactError(f"step {name}: {error}", path=error.path) from error
    raw.update({column.name: column for column in columns})
    feeds = tuple(Feed(column.name, (Source(None, column),), column.wire_dtype) for column in columns)
    return LoweredStep(name, Workflow(fitted, served), feeds, made)


def _lower_forest(name: str, step: ForestStep, stack: Stack, reader: Reader, trust: bool) -> LoweredStep:
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
        made += [f"{column}{MARGIN}" for column in made] if count == len(made) else [f"margin{n}" for n in range(count)]
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
            f"step {step}: its forest was trained on {some(unknown)}, which it does not read{hint}; add to reads",
            step=step,
        )
    ambiguous = [name for name in names if len(by_name[name]) > 1]
    if ambiguous:
        owners = ", ".join(str(source.step) for source in by_name[ambiguous[0]])
        raise StackError(f"step {step}: feature {ambiguous[0]} could be of {owners}; read fewer columns", step=step)
    return [by_name[name][0] for name in names]


def _lower_net(
    name: str, step: NetStep, stack: Stack, reader: Reader, tables: Path | None, native: bool
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
                f"({some([source.column.name for source in sources])})",
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


def _lower_source(name: str, step: FeaturesStep, reader: Reader, trust: bool) -> LoweredStep:
    source = one_id(name, step, reader)
    body = open_for_export(name, step.features, source.column.wire_dtype, trust)
    return LoweredStep(name, body, (Feed(IDS, (source,), source.column.wire_dtype),), body.columns)


def _lower_retrieval(name: str, step: RetrieveStep, reader: Reader, tables: Path | None) -> LoweredStep:
    assert tables is not None, "an index is a file beside the tables"
    body = read_index(name, step.index, step.k, tables)
    sources = reader.many(step.reads)
    texts = [source.column.name for source in sources if source.column.dtype == "string"]
    if texts:
        raise StackError(f"step {name} reads {some(texts)}, which holds text; a query is made of numbers", step=name)
    width = sum(source.column.width for source in sources)
    if width != body.width:
        raise StackError(
            f"step {name} reads {width} numbers ({some([source.column.name for source in sources])}), and the vectors "
            f"of its index have {body.width}",
            step=name,
        )
    return LoweredStep(name, body, (Feed(QUERY, tuple(sources), "float32"),), body.columns)
