"""A graph -> ONNX graphs, and between them what engines answer: forests, recurrences, searches, candidates, columns.

In a graph a forest is a node `tristage.Forest` of columns [rows, features] and, where groups have forests of their own,
their numbers [rows, 1]. A GRU or LSTM layer is a node `tristage.Recurrence` of ids [rows, steps] or projected
inputs [rows, steps, gates * width], and a mask [rows, steps, 1] where it has one. A net that a framework's own Triton
backend answers is a node `tristage.Net`, a Faiss index a node `tristage.Search` of queries [rows, width], and a stack
that answers candidates a node `tristage.Candidates`, a table of features a node `tristage.Features`. ONNX Runtime knows
no such nodes, so the graph is cut there: what needs no answer of theirs comes first, then those nodes, then what needs
them, and so on. What the columns engine computes is no node but many: see `tristage.export.columns`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from tristage.errors import ArtifactError
from tristage.export.candidates import CANDIDATES_NODE
from tristage.export.columns import apart
from tristage.export.feature_source import SOURCE_NODE
from tristage.export.features import FEATURES_NODE
from tristage.export.net.native import native_of
from tristage.export.onnx_graph import ENGINE_DOMAIN, node_reads, onnx_type
from tristage.export.retrieval import SEARCH_NODE
from tristage.serving.program_file import (
    Call,
    CandidatesCall,
    Choice,
    FeaturesCall,
    ForestCall,
    RecurrenceCall,
    SearchCall,
    SourceCall,
)

__all__ = ["Columns", "Program", "call_of", "split"]


@dataclass(frozen=True)
class Columns:
    """A part that the columns engine computes."""

    graph: onnx.ModelProto


@dataclass(frozen=True)
class Program:
    """What is evaluated one after the other, and which of the tensors are the answers.

    Attributes:
        parts: graphs, and the nodes that engines answer, in order.
        outputs: name of an answer -> the tensor it is.
    """

    parts: tuple[onnx.ModelProto | Columns | onnx.NodeProto, ...]
    outputs: Mapping[str, str]


def split(
    model: onnx.ModelProto,
    travels: Callable[[onnx.ValueInfoProto], bool] = lambda value: True,
    *,
    columns: bool = False,
) -> Program | None:
    """Cut a graph at what engines answer in it; None where nothing is.

    Args:
        model: the graph.
        travels: whether a tensor may leave the part that makes it; what may not is made again where it is read.
        columns: whether there is the columns engine too.

    Raises:
        ArtifactError: the type of a tensor that leaves a part cannot be told.
    """
    nodes = list(model.graph.node)
    if not columns and not any(node.domain == ENGINE_DOMAIN for node in nodes):
        return None
    named = {out: node.input[0] for node in nodes if node.op_type == "Identity" for out in node.output}
    if not {value.name for value in model.graph.output} <= set(named):
        return None
    outputs = {value.name: named[value.name] for value in model.graph.output}  # each is a copy of a tensor
    if columns:  # a program knows no inputs but its parts', so that what is handed through has to pass one
        handed = {value.name for value in (*model.graph.input, *model.graph.initializer)}
        outputs = {name: name if tensor in handed else tensor for name, tensor in outputs.items()}
    nodes = [node for node in nodes if not set(node.output) & (set(outputs) - set(outputs.values()))]
    level: dict[str, int] = {}
    for node in nodes:
        its = max((level.get(name, 0) for name in node_reads(node)), default=0)
        level.update(dict.fromkeys(node.output, its + (node.domain == ENGINE_DOMAIN)))
    values = _values(model)
    asked = [node for node in nodes if node.domain == ENGINE_DOMAIN]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    groups: list[tuple[bool, list[onnx.NodeProto]]] = []
    for number in range(max(level.values(), default=0) + 1):
        graph = _with_what_stays(nodes, level, number, lambda name: name in values and travels(values[name]))
        inside = {node.output[0] for node in graph}
        leaves = set(outputs.values()).union(*(node_reads(node) for node in nodes if node.output[0] not in inside))
        groups += apart(graph, values, constants, leaves) if columns else [(False, graph)]
        groups += [(False, [node]) for node in asked if level[node.output[0]] == number + 1]
    return Program(tuple(_parts(model, groups, set(outputs.values()), values)), outputs)


def _parts(
    model: onnx.ModelProto,
    groups: Sequence[tuple[bool, list[onnx.NodeProto]]],
    outputs: set[str],
    values: Mapping[str, onnx.ValueInfoProto],
) -> Iterator[onnx.ModelProto | Columns | onnx.NodeProto]:
    """Groups of nodes as parts, without those that nothing reads."""
    first: dict[str, int] = {}  # what is made twice is given by the first that makes it
    for number, (_, nodes) in enumerate(groups):
        for name in (name for node in nodes for name in node.output):
            first.setdefault(name, number)
    for number, (is_columns, nodes) in enumerate(groups):
        if nodes and nodes[0].domain == ENGINE_DOMAIN:
            yield nodes[0]
            continue
        later = outputs.union(*(_asks(its) for _, its in groups[number + 1 :]))
        given = {name for node in nodes for name in node.output if name in later and first[name] == number}
        if given:
            part = _part(model, nodes, given, values)
            yield Columns(part) if is_columns else part


def call_of(
    node: onnx.NodeProto,
) -> Call:
    """What a program's file says of a node that one of the runner's engines answers."""
    if node.op_type == SEARCH_NODE:
        says = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        items, scores = node.output
        return SearchCall(
            step=node.name,
            index=says["index"].decode(),
            queries=node.input[0],
            width=says["queries"],
            k=says["width"],
            items=items,
            scores=scores,
            compared=says.get("compared"),
        )
    if node.op_type == CANDIDATES_NODE:
        call = json.loads(next(a.s for a in node.attribute if a.name == "call"))
        count = next(a.i for a in node.attribute if a.name == "width")
        each, shared = node.input[: len(call["each"])], node.input[len(call["each"]) :]
        return CandidatesCall(
            step=node.name,
            candidates=call["candidates"],
            count=count,
            each=dict(zip(call["each"], each, strict=True)),
            shared=dict(zip(call["shared"], shared, strict=True)),
            makes=dict(zip(call["makes"], node.output, strict=True)),
        )
    if node.op_type == SOURCE_NODE:
        call = json.loads(next(a.s for a in node.attribute if a.name == "call"))
        makes = dict(zip(call["dtypes"], node.output, strict=True))
        return SourceCall(step=node.name, reads=node.input[0], makes=makes, **call)
    if node.op_type == FEATURES_NODE:
        call = json.loads(next(a.s for a in node.attribute if a.name == "call"))
        makes = dict(zip(call["makes"], node.output, strict=True))
        return FeaturesCall(step=node.name, features=call["features"], reads=node.input[0], makes=makes)
    if node.op_type == "Recurrence":
        made = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        makes = dict(zip([name.decode() for name in made["makes"]], node.output, strict=True))
        return RecurrenceCall(made["file"].decode(), node.input[0], node.input[1] if node.input[1:] else None, makes)
    said = {a.name: a.s.decode() for a in node.attribute}
    rows, *group = node.input
    engines = (Choice(None, said["engine"], said["file"]),)
    return ForestCall(node.name, said["recipe"], rows, group[0] if group else None, node.output[0], engines)


def _asks(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """What nodes read that they do not make themselves."""
    return {name for node in nodes for name in node_reads(node)} - {name for node in nodes for name in node.output}


def _with_what_stays(
    nodes: Sequence[onnx.NodeProto], level: Mapping[str, int], number: int, travels: Callable[[str], bool]
) -> list[onnx.NodeProto]:
    """The nodes of a level, and those of earlier ones whose tensors they read and that do not travel, in order."""
    kept: list[onnx.NodeProto] = []
    again: set[str] = set()
    for node in reversed(nodes):
        if node.domain == ENGINE_DOMAIN:
            continue
        if level[node.output[0]] == number or again.intersection(node.output):
            kept.append(node)
            again.update(name for name in node_reads(node) if level.get(name, number) < number and not travels(name))
    return kept[::-1]


def _part(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], later: set[str], values: Mapping[str, onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """Some of a model's nodes as a model of their own."""
    made = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node_reads(node) if name and name not in made)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [values[name] for name in read if name not in constants and name in values],
        [_value(name, values) for name in dict.fromkeys(out for n in nodes for out in n.output if out in later)],
        [constants[name] for name in read if name in constants],
    )
    return helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name=model.producer_name
    )


def _value(name: str, values: Mapping[str, onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    if name not in values:
        raise ArtifactError(f"the type of tensor {name}, which an engine's step reads, cannot be told from the graph")
    return values[name]


def _values(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Type and shape of every tensor, as far as ONNX can tell; of what engines answer they are known."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    for node in model.graph.node:
        native = native_of(node)
        if native is not None:
            for name, its in zip(node.output, native.outputs, strict=True):
                kind = onnx_type(its.dtype)
                known.graph.value_info.append(helper.make_tensor_value_info(name, kind, ["rows", its.width]))
        elif node.domain == ENGINE_DOMAIN:
            width = next(a.i for a in node.attribute if a.name == "width")
            makes = next((a.strings for a in node.attribute if a.name == "makes"), [b"rows"] * len(node.output))
            dtypes = next((a.strings for a in node.attribute if a.name == "dtypes"), [b"float32"] * len(node.output))
            for name, what, dtype in zip(node.output, makes, dtypes, strict=True):
                # ONNX Runtime takes dimensions of one name for equal, and layers have steps of their own
                shape = ["rows", f"{name} steps", width] if what == b"every" else ["rows", width]
                kind = onnx_type(dtype.decode())
                known.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))
    known.opset_import.add(domain=ENGINE_DOMAIN, version=1)
    graph = onnx.shape_inference.infer_shapes(known).graph
    return {value.name: value for value in (*graph.input, *graph.value_info, *graph.output) if value.type.ByteSize()}
