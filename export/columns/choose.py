"""Which nodes of a graph the columns engine computes: all that it can, where they are many.

Nodes that texts depend on stay with ONNX Runtime, and so come first; then what the engine can compute of texts' numbers
and of all else, in one go; then nets. A few nodes between two layers of a net are not worth a call of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache

import onnx
from onnx import TensorProto

from tristage.export.columns.assemble import Assembler, Constant, Held, Rows, Unsupported
from tristage.export.columns.lower import lower
from tristage.export.columns.pack import constant_of, row_of
from tristage.export.onnx_graph import ENGINE_DOMAIN, node_reads

__all__ = ["apart"]

_FEWEST = 16  # nodes that are worth a call
# what keeps rows apart that ONNX Runtime computes before or between
_BY_ROW = {
    *("Add", "And", "Cast", "Div", "Elu", "Equal", "Erf", "Gemm", "Identity", "LabelEncoder", "LeakyRelu", "Less"),
    *("MatMul", "Mul", "Not", "RegexFullMatch", "Relu", "Sigmoid", "StringSplit", "Sub", "Tanh", "Where"),
}
_ROWS, _LONGER = "rows", "rows and a ruler"  # what a tensor's first dimension counts

Nodes = list[onnx.NodeProto]


def apart(
    nodes: Sequence[onnx.NodeProto],
    values: Mapping[str, onnx.ValueInfoProto],
    constants: Mapping[str, TensorProto],
    leaves: Collection[str],
) -> list[tuple[bool, Nodes]]:
    """Nodes in groups to be computed one after the other, and of each whether the engine computes it.

    Args:
        nodes: in an order that they can be computed in.
        values: types and shapes of tensors.
        constants: the graph's.
        leaves: tensors that are read elsewhere too.
    """
    chosen, bound = _computable(nodes, values, constants)
    readers: dict[str, Nodes] = {name: [] for name in bound}
    for node in nodes:
        for name in bound.intersection(node.input):
            readers[name].append(node)
    while True:
        groups = _groups(nodes, chosen)
        group_of = {node.output[0]: number for number, (_, group) in enumerate(groups) for node in group}
        loose = [
            name
            for name in sorted(bound & chosen)
            if name in leaves or {group_of[reader.output[0]] for reader in readers[name]} != {group_of[name]}
        ]
        if loose:
            chosen -= set(loose).union(*({reader.output[0] for reader in readers[name]} for name in loose))
            continue
        small = [{node.output[0] for node in group} for own, group in groups if own and len(group) < _FEWEST]
        # one at a time: what follows it may then be one with what came before
        worthless = next((few for few in reversed(small) if len(_groups(nodes, chosen - few)) < len(groups)), None)
        if worthless is None:
            return groups
        chosen -= worthless


def _groups(nodes: Sequence[onnx.NodeProto], chosen: set[str]) -> list[tuple[bool, Nodes]]:
    """Nodes by how often the engine and ONNX Runtime take turns above them; ONNX Runtime begins."""
    turn: dict[str, int] = {}
    groups: dict[int, Nodes] = {}
    for node in nodes:
        at = max((turn.get(name, 0) for name in node_reads(node)), default=0)
        at += at % 2 != (node.output[0] in chosen)
        turn.update(dict.fromkeys(node.output, at))
        groups.setdefault(at, []).append(node)
    return [(at % 2 == 1, groups[at]) for at in sorted(groups)]


def _computable(
    nodes: Sequence[onnx.NodeProto], values: Mapping[str, onnx.ValueInfoProto], constants: Mapping[str, TensorProto]
) -> tuple[set[str], set[str]]:
    """The first outputs of nodes that the engine can compute, and that no text depends on.

    And of all those that have to be read by a node of the same part: rows of tables that are never taken as they are.
    """
    constant = cache(lambda name: constant_of(constants[name]))
    made = {name for node in nodes for name in node.output}
    counts = {name: _ROWS for name in values if name not in made and name not in constants}
    rows: dict[str, Rows] = {}
    chosen: set[str] = set()
    for node in nodes:
        if _by_engine(node, values, counts, constants, constant, rows):
            chosen.add(node.output[0])
            counts[node.output[0]] = _ROWS
        elif (its := _counts(node, counts, constants, constant, _is_text(node.output[0], values))) is not None:
            counts.update(dict.fromkeys(node.output, its))
    return chosen - _above_texts(nodes, values), {name for name, its in rows.items() if not _can_leave(its)}


def _can_leave(rows: Rows) -> bool:
    """Whether a table's rows can be had as they are."""
    try:
        Assembler().taken(rows)
    except Unsupported:
        return False
    return True


def _by_engine(
    node: onnx.NodeProto,
    values: Mapping[str, onnx.ValueInfoProto],
    counts: Mapping[str, str],
    constants: Mapping[str, TensorProto],
    constant: Callable[[str], Constant],
    rows: dict[str, Rows],
) -> bool:
    """Whether the engine can compute a node, by trying; `rows` takes what it makes, if that is yet to be taken."""
    held = [name for name in node_reads(node) if name and name not in constants]
    shapes = {name: row_of(values.get(name)) for name in (*held, *node.output)}
    if not held or None in shapes.values() or any(counts.get(name) != _ROWS for name in held):
        return False
    assembler = Assembler()
    inputs: list[Held | Rows | Constant | None] = []
    for name in node.input:
        shape = shapes.get(name)
        if name in constants:
            inputs.append(constant(name))
        else:
            inputs.append(rows.get(name) or (None if shape is None else assembler.input(*shape)))
    try:
        made = lower(node, inputs, assembler)
    except Unsupported:
        return False
    if isinstance(made, Rows):
        rows[node.output[0]] = made
    return shapes[node.output[0]] == (made.dtype, made.shape)


def _counts(
    node: onnx.NodeProto,
    counts: Mapping[str, str],
    constants: Mapping[str, TensorProto],
    constant: Callable[[str], Constant],
    of_texts: bool,
) -> str | None:
    """What the first dimension of a tensor that ONNX Runtime makes counts; None where that is not plain."""
    if node.domain == ENGINE_DOMAIN:
        return _ROWS
    of = {counts.get(name) for name in node_reads(node) if name and name not in constants}
    if len(of) != 1:
        return None
    (its,) = of

    def numbers(place: int) -> list[int] | None:
        name = node.input[place] if place < len(node.input) else ""
        return constant(name).values.reshape(-1).tolist() if name in constants else None

    if node.op_type in _BY_ROW:
        return its
    if node.op_type == "Concat":
        axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
        return (_LONGER if its == _ROWS else None) if axis == 0 else its
    if node.op_type == "Slice":
        starts, axes = numbers(1), numbers(3)
        if starts is not None and 0 not in (range(len(starts)) if axes is None else axes):
            return its
        return _ROWS if its == _LONGER else None  # the ruler is taken off again
    if node.op_type == "Reshape":  # of a text that was taken apart: [rows, 1, pieces] becomes [rows, pieces]
        return its if of_texts and (numbers(1) or [0])[0] == -1 else None
    return None


def _above_texts(nodes: Sequence[onnx.NodeProto], values: Mapping[str, onnx.ValueInfoProto]) -> set[str]:
    """The first outputs of nodes that texts are made of."""

    above: set[str] = set()
    read: set[str] = set()
    for node in reversed(nodes):
        if read.intersection(node.output) or any(_is_text(name, values) for name in (*node.input, *node.output)):
            above.add(node.output[0])
            read.update(node_reads(node))
    return above


def _is_text(name: str, values: Mapping[str, onnx.ValueInfoProto]) -> bool:
    return name in values and values[name].type.tensor_type.elem_type == TensorProto.STRING
