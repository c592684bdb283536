"""An NVTabular workflow becomes an ONNX graph that equals `workflow.transform` row by row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tristage.columns import DTYPES, Column
from tristage.errors import ArtifactError, StackError
from tristage.export.onnx_graph import GraphBuilder

# each registers its lowerings
from tristage.export.workflow import (  # noqa: F401
    casts,
    external,
    keys,
    lambdas,
    numeric,
    selection,
    slices,
)
from tristage.export.workflow.refusals import refusal_of
from tristage.export.workflow.registry import Node, lowering_of, lowers
from tristage.export.workflow.values import NotCompilable, NotServable, Value
from tristage.stack import ListInput

__all__ = ["CompiledWorkflow", "NoLowering", "compile_workflow", "raw_columns"]


class NoLowering(ArtifactError):
    """A workflow cannot be compiled, but NVTabular itself can serve it. `reason` names the operator and says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the workflow cannot be compiled: {reason}. Lowerings are registered with tristage.export.workflow.lowers"
        )
        self.reason = reason


@dataclass(frozen=True)
class CompiledWorkflow:
    """A compiled workflow: its graph so far, and the columns that can be read from it.

    Attributes:
        inputs: the raw columns it may read; those that turn out to be needed, the finished graph says.
        outputs: the columns it makes, in the workflow's order.
        graph: the builder that holds the nodes.
        values: output column -> where it is in the graph.
    """

    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]
    graph: GraphBuilder
    values: Mapping[str, Value]


def raw_columns(
    workflow: Any,
    lists: Mapping[str, ListInput],
    nullable: frozenset[str],
    known: Mapping[str, Column] | None = None,
) -> tuple[Column, ...]:
    """The raw columns a fitted workflow reads, without those that only train it (the targets of TargetEncoding).

    Args:
        workflow: a fitted nvtabular.Workflow.
        lists: lengths and pads of list columns.
        nullable: columns that may hold nulls.
        known: columns as golden rows have them, for those whose type the workflow doesn't know.

    Raises:
        ArtifactError: a column's type is unknown, or one that Triton lacks.
        StackError: a list column's length isn't declared, or something is declared for a column that isn't a list.
    """
    columns = []
    for schema in workflow.input_schema:
        dtype = "string" if schema.dtype.name in ("object", "string", "str") else schema.dtype.name
        is_list = schema.is_list
        if dtype == "unknown" and known is not None and schema.name in known:
            dtype, is_list = known[schema.name].dtype, known[schema.name].length is not None
        if dtype == "unknown":
            # it looks at the first row only, and an empty list or a null says nothing
            raise ArtifactError(
                f"NVTabular did not find out the type of raw column {schema.name}; fit it on rows whose first has a "
                "value there, or give the stack golden rows"
            )
        if dtype not in DTYPES:
            raise ArtifactError(f"raw column {schema.name} has type {dtype}, which Triton has no tensor for")
        if not is_list:
            columns.append(Column(schema.name, dtype, nullable=schema.name in nullable))
            continue
        options = lists.get(schema.name)
        if options is None:
            raise StackError(
                f"raw column {schema.name} holds lists; say how long they may be: "
                f"inputs: {{{schema.name}: {{max_length: N}}}}"
            )
        pad = options.pad
        if pad is None:
            pad = "" if dtype == "string" else float("nan") if dtype.startswith("float") else 0
        elif not _fits(pad, dtype):
            raise StackError(f"inputs gives the lists of {schema.name}, which hold {dtype}, the pad {pad!r}")
        columns.append(Column(schema.name, dtype, options.max_length, pad))
    scalar = {column.name for column in columns if column.length is None}
    for name in lists:
        if name in scalar:
            raise StackError(f"inputs declares a length for {name}, which holds one value a row; remove it")
    return tuple(columns)


def _fits(pad: int | float | str, dtype: str) -> bool:
    if dtype == "string":
        return isinstance(pad, str)
    if isinstance(pad, (str, bool)):
        return False
    return dtype.startswith("float") or bool(pad == int(pad) and np.iinfo(dtype).min <= pad <= np.iinfo(dtype).max)


def compile_workflow(
    workflow: Any, raw: Sequence[Column], tables: Path | None = None, *, native: bool = False
) -> CompiledWorkflow:
    """Compile a fitted workflow.

    Args:
        workflow: a fitted nvtabular.Workflow (23.8).
        raw: its raw columns, as `raw_columns` gives them.
        tables: the folder that large tables are written to, where the graph will find them; None keeps all in memory.
        native: whether ONNX Runtime is given texts as they are, by Triton's own backend; the runner also gives it
            fingerprints of them, and large tables of texts are found by those.

    Raises:
        NoLowering: an operator, or a use of one, has no lowering.
        ArtifactError: nothing can serve an operator, or a use of one, right; the message names it.
    """
    graph = GraphBuilder(tables, fingerprints=not native)
    sources = {column.name: _source(graph, column) for column in raw}
    done: dict[int, dict[str, Value]] = {}
    try:
        for node in _nodes(workflow.output_node):
            refusal = refusal_of(node.op, node.input_columns.resolve(node.input_schema).names)
            if refusal is not None:
                raise NotServable(refusal)
        values = _lower(workflow.output_node, sources, graph, done)
    except NotServable as error:
        raise ArtifactError(f"the workflow cannot be served: {error}") from error
    except NotCompilable as error:
        reason = " ".join("; ".join(error.args).split())
        # an address would make every export another one
        raise NoLowering(re.sub(r"\b0x[0-9a-f]+", "0x...", reason)) from error
    names = list(workflow.output_schema.column_names)
    outputs = tuple(
        Column(
            name,
            values[name].dtype,
            values[name].length,
            values[name].pad if values[name].length is not None else None,
        )
        for name in names
    )
    return CompiledWorkflow(tuple(raw), outputs, graph, {name: values[name] for name in names})


@lowers("merlin.dag.ops.subgraph.Subgraph")
def _subgraph(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """A graph within the graph reads the columns that reach it."""
    return _lower(node.op.graph.output_node, node.columns, graph, {})


def _source(graph: GraphBuilder, column: Column) -> Value:
    tensor = graph.input(column.name, column.wire_dtype, column.width)
    if column.length is None:
        return Value(tensor, column.wire_dtype)
    return Value(
        tensor,
        column.dtype,
        length=column.length,
        valid=_not_padding(graph, tensor, column),
        pad=0 if column.pad is None else column.pad,
        width=column.width,
        raw_pad=column.pad,
    )


def _not_padding(graph: GraphBuilder, tensor: str, column: Column) -> str:
    if column.dtype == "string":
        return graph.add("Not", graph.string_is(tensor, str(column.pad)))
    if isinstance(column.pad, float) and column.pad != column.pad:
        return graph.add("Not", graph.add("IsNaN", tensor))
    return graph.add("Not", graph.add("Equal", tensor, graph.scalar(column.pad, column.dtype)))


def _nodes(output: Any) -> Iterator[Any]:
    """Every node of a graph and of the graphs within it, each after those it reads."""
    seen: set[int] = set()

    def visit(node: Any) -> Iterator[Any]:
        if id(node) not in seen:
            seen.add(id(node))
            for upstream in node.parents_with_dependencies:
                yield from visit(upstream)
            if node.op.is_subgraph:
                yield from visit(node.op.graph.output_node)
            yield node

    return visit(output)


def _lower(
    node: Any, sources: Mapping[str, Value], graph: GraphBuilder, done: dict[int, dict[str, Value]]
) -> dict[str, Value]:
    """The columns that leave a node, by name; as merlin.dag.executors.LocalExecutor runs it."""
    if id(node) in done:
        return done[id(node)]
    columns: dict[str, Value] = {}
    lacks: dict[str, None] = {}
    for upstream in node.parents_with_dependencies:
        try:
            columns.update(_lower(upstream, sources, graph, done))
        except NotCompilable as error:  # the other branches may lack something too
            lacks.update(dict.fromkeys(error.args))
    if lacks:
        raise NotCompilable(*lacks)
    for name in (*node.input_schema.column_names, *node.dependency_columns.names):
        if name not in columns and name in sources:
            columns[name] = sources[name]
    lowering = lowering_of(node.op)
    if lowering is None:
        raise NotCompilable(f"operator {type(node.op).__name__} has no lowering")
    made = lowering(Node(node.op, node.input_columns.resolve(node.input_schema), columns), graph)
    done[id(node)] = {name: made[name] for name in node.output_schema.column_names}
    return done[id(node)]
