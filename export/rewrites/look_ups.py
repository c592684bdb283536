"""Look-ups made fewer: ids that Keras makes sure of twice, and small tables of one width looked up together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tristage.export.onnx_graph import OPSET
from tristage.export.rewrites.editable import EditableGraph, attributes
from tristage.export.rewrites.finding import Finding, Rewrite
from tristage.export.tables import LARGE

__all__ = ["FUSE_LOOK_UPS", "PLAIN_IDS"]

_ARITHMETIC = ("Add", "Cast", "Less", "Mul", "Not", "Where")
_OUTSIDE = 2**62  # an id that no table has: the look-up fails, as it would have


def _plain_ids(graph: EditableGraph) -> Iterator[Finding]:
    """Ids below 0 count from a table's end, says ONNX; Keras computes that before it looks up."""
    found = 0
    for node in [node for node in graph.nodes if node.op_type == "Gather" and attributes(node).get("axis", 0) == 0]:
        shape = graph.shape(node.input[0])
        if not shape or shape[0] is None or graph.constant(node.input[0]) is None:
            continue
        source, nodes = _source(graph, node.input[1])
        if source is None or not nodes or not _only_wraps(graph, nodes, source, node.input[1], shape[0]):
            continue
        graph.remove(node)
        graph.add("Gather", node.input[0], source, outputs=list(node.output), axis=0)
        found += 1
    gone = len(graph.drop_unread())
    if found:
        yield Finding("plain_ids", f"ids of {found} look-ups, {gone} nodes", True)


def _source(graph: EditableGraph, tensor: str) -> tuple[str | None, list[onnx.NodeProto]]:
    """The one tensor that arithmetic makes another from, and the nodes that do; None where it is made from several."""
    waiting, sources, nodes = [tensor], set[str](), list[onnx.NodeProto]()
    while waiting:
        name = waiting.pop()
        node = graph.maker(name, *_ARITHMETIC)
        if node is not None and not any(node is other for other in nodes):
            nodes.append(node)
            waiting += node.input
        elif node is None and graph.constant(name) is None:
            sources.add(name)
    return (sources.pop() if len(sources) == 1 else None), nodes


def _only_wraps(graph: EditableGraph, nodes: list[onnx.NodeProto], source: str, made: str, rows: int) -> bool:
    ends = [-rows, -rows + 1, -rows // 2, -2, -1, 0, 1, rows // 2, rows - 2, rows - 1]
    ids = np.unique(np.array(ends).clip(-rows, rows - 1))
    ordered = [node for node in graph.nodes if any(node is other for other in nodes)]
    constants = {name: graph.constant(name) for node in ordered for name in node.input}
    initial = [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items() if v is not None]
    for dtype, kind in ((np.int64, TensorProto.INT64), (np.int32, TensorProto.INT32)):
        inputs = [helper.make_tensor_value_info(source, kind, [None])]
        outputs = [helper.make_empty_tensor_value_info(made)]
        body = helper.make_graph(graph.sorted(ordered), "ids", inputs, outputs, initial)
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)])
        try:
            (answer,) = ReferenceEvaluator(model).run(None, {source: ids.astype(dtype)})
        except Exception:  # noqa: S112 - of NumPy and ONNX: the ids are of the other type, or something else is made
            continue
        if (
            answer.shape == ids.shape
            and answer.dtype.kind == "i"
            and (answer == np.where(ids < 0, ids + rows, ids)).all()
        ):
            return True
    return False


def _fuse(graph: EditableGraph) -> Iterator[Finding]:
    for node in [node for node in graph.nodes if node.op_type == "Concat"]:
        rank = len(graph.shape(node.output[0]) or ())
        if rank != 2 or attributes(node)["axis"] % rank != 1:
            continue
        parts = [(name, _small(graph, name)) for name in node.input]
        inputs: list[str] = []
        for key, run in groupby(parts, key=lambda part: part[1] and part[1][:2]):
            members = [(name, small) for name, small in run]
            if key is None or len(members) < 3:
                inputs += [name for name, _ in members]
                continue
            smalls = [small for _, small in members if small is not None]
            inputs.append(_together(graph, key[0], key[1], smalls))
            yield Finding("fuse_look_ups", f"{len(members)} look-ups of width {key[1]}", True)
        if inputs != list(node.input):
            graph.remove(node)
            if len(inputs) == 1:
                graph.add("Identity", inputs[0], outputs=list(node.output))
            else:
                graph.add("Concat", *inputs, outputs=list(node.output), axis=1)
            graph.drop_unread()


Small = tuple[str, int, int, str]  # the tensor of ids [rows, n], the width, which of the n, and the table


def _small(graph: EditableGraph, name: str) -> Small | None:
    """A look-up in a small table with one of a tensor's columns."""
    gather = graph.maker(name, "Gather")
    if gather is None or attributes(gather).get("axis", 0) != 0 or graph.only_reader(name) is None:
        return None
    table = graph.shape(gather.input[0])
    column = graph.maker(gather.input[1], "Gather")
    values = graph.constant(gather.input[0])
    if values is None or values.nbytes >= LARGE or values.dtype != np.float32 or table is None or len(table) != 2:
        return None
    if column is None or attributes(column).get("axis", 0) != 1 or len(graph.shape(column.input[0]) or ()) != 2:
        return None
    place = graph.constant(column.input[1])
    if place is None or place.ndim:
        return None
    return column.input[0], int(values.shape[1]), int(place), gather.input[0]


def _together(graph: EditableGraph, ids: str, width: int, smalls: list[Small]) -> str:
    """Look columns of ids up in their tables, laid one under the other: [rows, columns * width]."""
    tables = [np.asarray(graph.constant(table)) for _, _, _, table in smalls]
    sizes = np.array([len(table) for table in tables], np.int64)
    begin = graph.add_constant(np.concatenate([[0], sizes.cumsum()[:-1]]))
    size, zero, outside = (graph.add_constant(np.asarray(value, np.int64)) for value in (sizes, 0, _OUTSIDE))
    chosen = graph.add("Gather", ids, graph.add_constant(np.array([place for _, _, place, _ in smalls])), axis=1)
    chosen = graph.add("Cast", chosen, to=TensorProto.INT64)
    wrapped = graph.add("Where", graph.add("Less", chosen, zero), graph.add("Add", chosen, size), chosen)
    inside = graph.add("And", graph.add("GreaterOrEqual", wrapped, zero), graph.add("Less", wrapped, size))
    places = graph.add("Where", inside, graph.add("Add", wrapped, begin), outside)
    rows = graph.add("Gather", graph.add_constant(np.concatenate(tables)), places, axis=0)
    return graph.add("Reshape", rows, graph.add_constant(np.array([0, len(smalls) * width])))


PLAIN_IDS = Rewrite("plain_ids", "ids below 0 are left to the look-up, which knows them", _plain_ids)
FUSE_LOOK_UPS = Rewrite("fuse_look_ups", "small tables of one width are looked up together", _fuse)
