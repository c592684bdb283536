"""A small builder of ONNX graphs: equal nodes are shared, unread ones are dropped, names are the same every time."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tristage.columns import NULL_STRING
from tristage.export.tables import LARGE, refer, rename
from tristage.manifest import sha256
from tristage.serving.program_file import Choice

__all__ = ["ENGINE_DOMAIN", "IR_VERSION", "OPSET", "GraphBuilder", "dtype_of", "node_reads", "onnx_type"]

# what every server that tristage places on can read: Triton 24.10 takes opset 21 and IR 10 at most
OPSET = 20
OPSET_ML = 3
IR_VERSION = 10
_PRODUCER = "tristage"
ENGINE_DOMAIN = "tristage"  # of the nodes that stand for what engines answer
_SCRATCH = "scratch-"

_TYPES = {
    "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "string": TensorProto.STRING,
}


def onnx_type(dtype: str) -> int:
    """ONNX's number of a dtype's name."""
    return int(_TYPES[dtype])


def dtype_of(number: int) -> str:
    """The name of the dtype that has ONNX's number."""
    return next(dtype for dtype, its in _TYPES.items() if its == number)


class GraphBuilder:
    """Collects the nodes of one graph whose tensors are [rows, width].

    Tensors are named __t0, __t1, ... in the order they are made; constants __c0, __c1, ...: what no column is named. A
    node that was already added with the same inputs and attributes is not added again.

    Args:
        folder: where large arrays are written, in files of their own that a saved graph lies beside; None keeps them in
            memory.
        fingerprints: whether who runs the graph makes fingerprints of texts for it, as tristage's runner does.
    """

    def __init__(self, folder: Path | None = None, fingerprints: bool = True) -> None:
        self._folder = folder
        self.fingerprints = fingerprints
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._made: dict[Any, tuple[str, ...]] = {}
        self._constants: dict[Any, str] = {}
        self._count = 0

    def input(self, name: str, dtype: str, width: int) -> str:
        """Declare the graph's input `name` of shape [rows, width]; returns its name."""
        self._inputs[name] = helper.make_tensor_value_info(name, _TYPES[dtype], ["rows", width])
        return name

    def is_input(self, tensor: str) -> bool:
        """Whether a tensor is one that was declared with `input`."""
        return tensor in self._inputs

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns the output's name.

        An attribute `name` is the node's name, which ONNX Runtime's error holds when the node fails.
        """
        return self.add_many(op, *inputs, domain=domain, outputs=1, **attributes)[0]

    def add_many(self, op: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        """Add a node with several outputs; returns their names."""
        key = (
            op,
            domain,
            inputs,
            outputs,
            tuple(sorted((name, _hashable(value)) for name, value in attributes.items())),
        )
        if key not in self._made:
            names = tuple(self._new_name() for _ in range(outputs))
            self._nodes.append(helper.make_node(op, list(inputs), list(names), domain=domain, **attributes))
            self._made[key] = names
        return self._made[key]

    def array(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """An array to fill, for a constant or for work: in a file where it is large. What it holds is undefined."""
        if self._folder is None or np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize < LARGE:
            return np.empty(shape, dtype)
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=_SCRATCH, delete=False) as file:
            made = np.memmap(file.name, dtype, "w+", shape=shape)
        weakref.finalize(made, Path(file.name).unlink, missing_ok=True)
        return made

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant, or find the same one; returns its name. One that `array` put into a file stays there."""
        if isinstance(value, np.memmap):
            return self._external(value)
        # an array of objects has pointers for bytes
        content = tuple(value.ravel().tolist()) if value.dtype == object else value.tobytes()
        key = (str(value.dtype), value.shape, content)
        if key not in self._constants:
            name = f"__c{len(self._initializers)}"
            self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
            self._constants[key] = name
        return self._constants[key]

    def _external(self, value: np.memmap[Any, Any]) -> str:
        value.flush()
        file = Path(str(value.filename))
        digest = sha256(file)
        key = (str(value.dtype), value.shape, digest)
        if key not in self._constants:
            name = f"__c{len(self._initializers)}"
            self._initializers[name] = refer(
                name, rename(file, digest), value.shape, _TYPES[value.dtype.name], value.nbytes
            )
            self._constants[key] = name
        return self._constants[key]

    def scalar(self, value: Any, dtype: str) -> str:
        """A constant of one element, of shape [], that broadcasts over rows."""
        return self.constant(np.array(value, object if dtype == "string" else dtype))

    def cast(self, tensor: str, source: str, to: str) -> str:
        """Cast between dtypes by name; nothing is added where they are equal."""
        return tensor if source == to else self.add("Cast", tensor, to=_TYPES[to])

    def concat(self, tensors: Sequence[str]) -> str:
        """Tensors side by side."""
        return tensors[0] if len(tensors) == 1 else self.add("Concat", *tensors, axis=1)

    def columns(self, tensor: str, indices: Sequence[int], width: int) -> str:
        """Columns `indices` of a [rows, width] tensor, in that order."""
        if list(indices) == list(range(width)):
            return tensor
        first, last = indices[0], indices[-1]
        if list(indices) == list(range(first, last + 1)):
            bounds = [self.constant(np.array([bound], np.int64)) for bound in (first, last + 1, 1)]
            return self.add("Slice", tensor, *bounds)
        return self.add("Gather", tensor, self.constant(np.array(indices, np.int64)), axis=1)

    def where(self, condition: str, yes: str, no: str, dtype: str) -> str:
        """Elements of `yes` where the condition holds, else of `no`; ONNX Runtime lacks this for some dtypes."""
        if dtype not in ("bool", "int16", "uint16", "uint64"):
            return self.add("Where", condition, yes, no)
        wide = self.add("Where", condition, *(self.cast(tensor, dtype, "int64") for tensor in (yes, no)))
        return self.cast(wide, "int64", dtype)

    def label_encode(self, tensor: str, labels: Mapping[Any, int], default: int) -> str:
        """Map keys (strings or int64, all of one type) to int64; what is not among them to `default`."""
        strings = any(isinstance(key, str) for key in labels)
        keys = {"keys_strings" if strings else "keys_int64s": list(labels)}
        values = list(labels.values())
        return self.add(
            "LabelEncoder", tensor, domain="ai.onnx.ml", **keys, values_int64s=values, default_int64=default
        )

    def forest(self, step: str, recipe: str, default: Choice, rows: str, group: str | None, width: int) -> str:
        """Ask a step's forests; returns the answer's name.

        Args:
            step: the step's name.
            recipe: the file that names its trees.
            default: the engine that answers, and its file.
            rows: its features, [rows, features] float32.
            group: the number of each row's group, [rows, 1] int64; None without groups.
            width: columns of the answer.
        """
        given = (rows,) if group is None else (rows, group)
        said = {"recipe": recipe, "engine": default.engine, "file": default.file}
        return self.add("Forest", *given, domain=ENGINE_DOMAIN, width=width, name=step, **said)

    def checkpoint(self, file: str, rows: str, features: int, width: int, name: str) -> str:
        """Ask a checkpoint of Triton's FIL backend.

        Args:
            file: its name, beside the graph.
            rows: its features, [rows, features] float32.
            features: how many they are.
            width: columns of its answer.
            name: the step that it belongs to.
        """
        said = {"recipe": "", "engine": "fil", "file": file}
        return self.add("Forest", rows, domain=ENGINE_DOMAIN, features=features, width=width, name=name, **said)

    def string_is(self, tensor: str, value: str) -> str:
        """Where a string tensor equals a value, as booleans."""
        return self.cast(self.label_encode(tensor, {value: 1}, 0), "int64", "bool")

    def is_null(self, tensor: str, dtype: str) -> str:
        """Where a column is null, as booleans: NaN, or NULL_STRING."""
        if dtype == "string":
            return self.string_is(tensor, NULL_STRING)
        if dtype in ("float32", "float64"):
            return self.add("IsNaN", tensor)
        # no integer is null, but the answer must have the column's shape
        return (
            self.add("Not", self.add("Equal", tensor, tensor)) if dtype != "bool" else self.add("Xor", tensor, tensor)
        )

    def embed(self, model: onnx.ModelProto, feeds: Mapping[str, str]) -> tuple[str, ...]:
        """Put another model's graph into this one; `feeds` names the tensors that become its inputs.

        Returns the names of its outputs, in order.
        """
        names: dict[str, str] = {"": "", **feeds}
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        # in the order they are read: the order they are listed in changes from run to run
        for read in (
            *(name for node in model.graph.node for name in node_reads(node)),
            *(o.name for o in model.graph.output),
        ):
            if read in constants and read not in names:
                names[read] = f"__c{len(self._initializers)}"
                copy = onnx.TensorProto()
                copy.CopyFrom(constants[read])
                copy.name, copy.doc_string = names[read], ""
                self._initializers[copy.name] = copy
        ours = model.producer_name == _PRODUCER
        for node in model.graph.node:
            copy_node = onnx.NodeProto()
            copy_node.CopyFrom(node)
            self._rename(copy_node, names)
            if ours:
                copy_node.name = node.name  # it says what failed; exporters' own names say nothing
            self._nodes.append(copy_node)
        return tuple(names[output.name] for output in model.graph.output)

    def _rename(self, node: onnx.NodeProto, names: dict[str, str]) -> None:
        """Give a node's tensors the names they have here, and those it makes new ones; in its nested graphs too."""
        node.name, node.doc_string = "", ""
        del node.metadata_props[:]
        inputs, outputs = [names[name] for name in node.input], list(node.output)
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                inner = dict(names)
                for value in (*graph.input, *graph.initializer):
                    inner[value.name] = value.name = self._new_name()
                for nested in graph.node:
                    self._rename(nested, inner)
                for value in graph.output:
                    value.name = inner[value.name]
                del graph.value_info[:]
        for name in outputs:
            names[name] = self._new_name() if name else ""
        node.input[:] = inputs
        node.output[:] = [names[name] for name in outputs]

    def model(self, outputs: Sequence[tuple[str, str, str, int]]) -> onnx.ModelProto:
        """The finished model, holding only what its outputs need.

        Args:
            outputs: (name, tensor, dtype, width) of each output, of shape [rows, width].

        Inputs that nothing reads are dropped: `model.graph.input` says which are left.
        """
        nodes = [*self._nodes, *(helper.make_node("Identity", [tensor], [name]) for name, tensor, _, _ in outputs)]
        needed = {name for name, _, _, _ in outputs}
        kept: list[onnx.NodeProto] = []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                needed.update(node_reads(node))
                kept.append(node)
        graph = helper.make_graph(
            list(reversed(kept)),
            "graph",
            [value for name, value in self._inputs.items() if name in needed],
            [helper.make_tensor_value_info(name, _TYPES[dtype], ["rows", width]) for name, _, dtype, width in outputs],
            [tensor for name, tensor in self._initializers.items() if name in needed],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)],
            ir_version=IR_VERSION,
            producer_name=_PRODUCER,
        )
        return model

    def _new_name(self) -> str:
        self._count += 1
        return f"__t{self._count - 1}"


def node_reads(node: onnx.NodeProto) -> list[str]:
    """What a node and its nested graphs read, in order; with what the nested ones make themselves."""
    names = list(node.input)
    for graph in (graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)):
        names += [name for nested in graph.node for name in node_reads(nested)]
        names += [value.name for value in graph.output]
    return names


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(value)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, onnx.TensorProto):
        return value.SerializeToString()
    return value
