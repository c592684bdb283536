"""TensorFlow's large variables as inputs of what is converted: as constants they are slow, and 2 GB at most.

They become the ONNX graph's tensors afterwards, in files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tristage.export.tables import LARGE, externalize

__all__ = ["Unreadable", "is_large", "named_tables", "table_specs", "take_tables", "variables_as_inputs"]

# operation -> its attributes that name a function, and the one that lists the types of what it is called with
_CALLS = {
    "PartitionedCall": (("f",), "Tin"),
    "StatefulPartitionedCall": (("f",), "Tin"),
    "While": (("cond", "body"), "T"),
    "StatelessWhile": (("cond", "body"), "T"),
}
_HUGE = 1 << 26  # bytes
_OWN = "__of_values"
_LOOPS = ("While", "StatelessWhile")


def is_large(variable: Any) -> bool:
    """Whether a tf.Variable is to lie in a file of its own."""
    return bool(variable.dtype.size * np.prod(variable.shape) >= LARGE)


def named_tables(variables: Sequence[Any]) -> dict[str, Any]:
    """Names for the inputs that variables become."""
    return {f"tristage_table{number}": variable for number, variable in enumerate(variables)}


def table_specs(stored: Mapping[str, Any]) -> list[Any]:
    """What tf2onnx is told of those inputs: of a huge one not how many rows, or TensorFlow's optimizer makes one up."""
    from tensorflow import TensorSpec

    specs = []
    for name, variable in stored.items():
        rows, *rest = variable.shape
        huge = variable.dtype.size * np.prod(variable.shape) >= _HUGE
        specs.append(TensorSpec([None if huge else rows, *rest], variable.dtype, name=name))
    return specs


def take_tables(model: onnx.ModelProto, stored: Mapping[str, Any], tables: Path | None) -> None:
    """Turn the inputs that stand for variables into tensors of the graph, in files of `tables`."""
    from tensorflow import convert_to_tensor

    for value in [value for value in model.graph.input if value.name in stored]:
        own = memoryview(convert_to_tensor(stored[value.name]))  # no copy, as np.asarray makes one
        model.graph.initializer.append(externalize(value.name, np.asarray(own), tables))
        model.graph.input.remove(value)


class Unreadable(Exception):
    """A variable is used otherwise than by reading it."""


def variables_as_inputs(signature: Any) -> tuple[Any, dict[str, Any]]:
    """A signature's graph in which what was a variable's handle is the variable's value.

    Args:
        signature: of a SavedModel that was loaded.

    Returns:
        The GraphDef, and its placeholder -> the variable that it stands for. Other resources (look-up tables) stay.

    Raises:
        Unreadable: a variable is written to, or handed to an operation that is not known here.
    """
    by_handle = {id(variable.handle): variable for variable in signature.variables}
    stands = {
        inner.op.name: by_handle[id(outer)]
        for inner, outer in zip(signature.graph.internal_captures, signature.captured_inputs, strict=True)
        if id(outer) in by_handle
    }
    graph = signature.graph.as_graph_def()
    values = {name: _Kind(variable.dtype.as_datatype_enum, tuple(variable.shape)) for name, variable in stands.items()}
    for node in graph.node:
        if node.name in values:
            node.attr.clear()
            node.attr["dtype"].type = values[node.name].dtype
            node.attr["shape"].shape.unknown_rank = True
    functions = {function.signature.name: function for function in graph.library.function}
    _Reading(functions).nodes(graph.node, values)
    _rename(graph)
    return graph, stands


def _rename(graph: Any) -> None:
    """Give every function a name of its own: TensorFlow keeps the function that it knows by a name already."""
    own = {function.signature.name for function in graph.library.function}
    for function in graph.library.function:
        function.signature.name += _OWN
    del graph.library.gradient[:]
    for node in (*graph.node, *(node for function in graph.library.function for node in function.node_def)):
        for value in node.attr.values():
            for called in (*([value.func] if value.HasField("func") else []), *value.list.func):
                if called.name in own:
                    called.name += _OWN


@dataclass(frozen=True)
class _Kind:
    """A value where a handle was: TensorFlow's number of its type, and its shape."""

    dtype: int
    shape: tuple[int, ...]


class _Reading:
    """Turns reads of handles into values, through every function that a handle is handed to."""

    def __init__(self, functions: Mapping[str, Any]) -> None:
        self._functions = functions
        self._done: dict[str, Mapping[int, _Kind]] = {}  # function -> its arguments that are values

    def nodes(self, nodes: Any, values: Mapping[str, _Kind]) -> dict[str, str]:
        """Rewrite the nodes that read `values`, by name; returns outputs' old names and their new ones."""
        renamed: dict[str, str] = {}
        known = dict(values)
        for node in list(nodes):
            places = {at: known[name] for at, name in enumerate(map(_value, node.input)) if name in known}
            if not places:
                continue
            if node.op == "Identity":
                known[node.name] = places[0]
                _only(node, T=places[0].dtype)
            elif node.op == "ReadVariableOp":
                node.op = "Identity"
                _only(node, T=places[0].dtype)
                renamed[f"{node.name}:value:0"] = f"{node.name}:output:0"
            elif node.op == "ResourceGather" and not node.attr["batch_dims"].i and set(places) == {0}:
                self._gather(nodes, node, places[0].dtype)
            elif node.op in _CALLS:
                known.update(self._call(node, places))
            else:
                raise Unreadable(f"{node.name} ({node.op})")
        return renamed

    def _gather(self, nodes: Any, node: Any, dtype: int) -> None:
        from tensorflow import int32, make_tensor_proto

        axis = nodes.add(name=f"{node.name}__axis", op="Const")
        axis.attr["dtype"].type = int32.as_datatype_enum
        axis.attr["value"].tensor.CopyFrom(make_tensor_proto(0, int32))
        indices = node.attr["Tindices"].type
        node.op = "GatherV2"
        _only(node, Tparams=dtype, Tindices=indices, Taxis=int32.as_datatype_enum)
        # within a function an input says which output it is of
        local = any(name.count(":") == 2 for other in nodes for name in other.input)
        node.input.append(f"{axis.name}:output:0" if local else axis.name)

    def _call(self, node: Any, places: Mapping[int, _Kind]) -> dict[str, _Kind]:
        """Hand values to a function; returns the node's outputs that are such values: a loop hands on what it has."""
        attributes, listed = _CALLS[node.op]
        for attribute in attributes:
            self._function(node.attr[attribute].func.name, places, loop=attribute == "body")
        for place, kind in places.items():
            node.attr[listed].list.type[place] = kind.dtype
            if node.op in _LOOPS and node.attr["output_shapes"].list.shape:
                _describe(node.attr["output_shapes"].list.shape[place], kind)
        if node.op not in _LOOPS:
            return {}
        return {f"{node.name}:output:{place}" if place else node.name: kind for place, kind in places.items()}

    def _function(self, name: str, places: Mapping[int, _Kind], *, loop: bool) -> None:
        if name in self._done:
            if self._done[name] != places:
                raise Unreadable(f"{name}, which is called in several ways")
            return
        self._done[name] = places
        function = self._functions[name]
        for place, kind in places.items():
            for argument in (function.signature.input_arg, *([function.signature.output_arg] if loop else [])):
                argument[place].type = kind.dtype
                argument[place].ClearField("handle_data")
            function.arg_attr[place].Clear()
            _describe(function.arg_attr[place].attr["_output_shapes"].list.shape.add(), kind)
        arguments = {function.signature.input_arg[place].name: kind for place, kind in places.items()}
        renamed = self.nodes(function.node_def, arguments)
        for inputs in (other.input for other in function.node_def):
            for at, read in enumerate(inputs):
                inputs[at] = renamed.get(read, read)
        for output, read in function.ret.items():
            function.ret[output] = renamed.get(read, read)


def _describe(shape: Any, kind: _Kind) -> None:
    shape.Clear()
    for size in kind.shape:
        shape.dim.add(size=size)


def _value(name: str) -> str:
    """What an input refers to, as values are named here: a node's only output by the node's name."""
    node, _, output = name.partition(":")
    return node if output in ("", "0", "output:0") else name


def _only(node: Any, **types: int) -> None:
    """Give a node these attributes, and no others."""
    node.attr.clear()
    for attribute, dtype in types.items():
        node.attr[attribute].type = dtype
