"""Look-ups in a graph: tables that a compiled workflow reads by key, and rows that a net reads by id.

A key becomes a number in a dictionary (see `tristage.export.workflow.dictionary`): a LabelEncoder, or a perfect hash,
which ends in a Where that keeps a place if the key that lies there is the one sought. A Gather by such a number, from a
constant, is a keyed look-up; a Gather of rows of numbers by anything else is an embedding's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from tristage.export.size.work import Work

__all__ = ["Constant", "look_ups"]

_MOVES = {"Squeeze", "Unsqueeze", "Reshape", "Identity", "Cast"}  # leave a number what it is


@dataclass(frozen=True)
class Constant:
    """A constant tensor: its shape, ONNX's number of its type, and its size."""

    shape: tuple[int, ...]
    kind: int
    nbytes: int


def look_ups(graph: onnx.GraphProto, constants: dict[str, Constant], elements: Callable[[str], int]) -> Work:
    """Count a graph's look-ups, and the size of what they read.

    Args:
        graph: the graph.
        constants: its constants by name.
        elements: how many elements a tensor has for one row; 1 where that cannot be told.
    """
    makers = {out: node for node in graph.node for out in node.output}
    hashes = {out: inner for node in graph.node for out, inner in _hash(node, makers)}
    internal = {id(node) for inner in hashes.values() for node in inner}
    numbers: dict[str, frozenset[str]] = {}  # tensors that hold a number -> the dictionaries it came from
    parts: dict[str, frozenset[str]] = {}  # any tensor -> the dictionaries it was computed from
    keyed = embedded = 0
    searched: dict[str, int] = {}  # dictionary -> keys of a row
    read: dict[str, int] = {}  # constant, or node whose attributes hold a dictionary -> bytes
    for node in graph.node:
        came = frozenset().union(*(parts.get(name, frozenset()) for name in node.input))
        out = node.output[0]
        if node.op_type == "LabelEncoder" or out in hashes:
            came |= {out}
            numbers[out] = came
        elif node.op_type in _MOVES and node.input[0] in numbers:
            numbers[out] = numbers[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in constants and id(node) not in internal:
            table, index = constants[node.input[0]], node.input[1]
            if index in numbers:
                if _is_order(table):
                    numbers[out] = numbers[index]
                    read[node.input[0]] = table.nbytes
                else:
                    keyed += elements(index)
                    read[node.input[0]] = table.nbytes
                    searched |= {name: elements(name) for name in numbers[index]}
                    came = frozenset()
            elif len(table.shape) == 2 and table.kind in _FLOATS and _axis(node) == 0 and index not in constants:
                embedded += elements(index)
                read[node.input[0]] = table.nbytes
        parts.update(dict.fromkeys(node.output, came))
    for name in searched:
        inner = hashes.get(name)
        for node in inner or ():
            read.update({each: constants[each].nbytes for each in node.input if each in constants})
        if inner is None:
            read[name] = makers[name].ByteSize()
    return Work(
        keyed_look_ups=keyed,
        dictionaries=sum(searched.values()),
        embedding_rows=embedded,
        table_bytes=sum(read.values()),
    )


_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}


def _is_order(table: Constant) -> bool:
    """Whether a table is the one of `dictionary.settled`: where the row of a number's statistics lies."""
    return len(table.shape) == 1 and table.kind == onnx.TensorProto.INT32


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def _hash(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> list[tuple[str, list[onnx.NodeProto]]]:
    """A perfect hash's answer, and the Gathers within it: of keys and of multipliers."""
    equal = makers.get(node.input[0]) if node.op_type == "Where" else None
    keys = makers.get(equal.input[0]) if equal is not None and equal.op_type == "Equal" else None
    if keys is None or keys.op_type != "Gather" or keys.input[1] != node.input[1]:
        return []
    at = makers.get(node.input[1])
    while at is not None and at.op_type in ("Cast", "BitShift"):
        at = makers.get(at.input[0])
    multiplier = makers.get(at.input[1]) if at is not None and at.op_type == "Mul" else None
    return [(node.output[0], [keys] if multiplier is None else [keys, multiplier])]
