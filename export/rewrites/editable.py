"""An ONNX graph under rewriting: who makes and who reads a tensor, what constants hold, what shapes are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tristage.export.onnx_graph import node_reads
from tristage.export.tables import LARGE, externalize, read_tensor, refer, rename
from tristage.manifest import sha256

__all__ = ["EditableGraph", "attributes"]

_BLOCK = 1 << 14  # rows of a table that are worked on at once
_MOVES = ("Concat", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_MOST_MOVED = 1 << 28  # bytes


class EditableGraph:
    """A copy of a model that rewrites change; `finish` gives the model back.

    Args:
        model: the model; its large tensors may lie in files of `tables`.
        tables: the folder of large tensors; None keeps new ones in memory.

    Attributes:
        nodes: in no order that must hold.
        outputs: names of what the graph answers.
        tables: the folder of large tensors.
        opened: layers that one rewrite opened, for others to see.
    """

    def __init__(self, model: onnx.ModelProto, tables: Path | None) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self.tables = tables
        self.opened: list[Any] = []
        graph = self._model.graph
        self.nodes: list[onnx.NodeProto] = []
        self.outputs = {value.name for value in graph.output}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._count = 0
        same: dict[str, str] = {}
        for node in graph.node:
            _reads_instead(node, same)
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
            elif node.op_type == "Identity" and not self.outputs.intersection(node.output):
                same[node.output[0]] = node.input[0]
            elif not self._fold(node):
                self.nodes.append(node)
        self._taken = {name for node in self.nodes for name in node.output} | set(self._constants)
        self._shapes = _shapes(self._model)
        self._index()

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Compute a node that only moves constants about: exporters leave those of large weights in the graph."""
        if node.op_type not in _MOVES or not node.input or not all(n in self._constants for n in node.input if n):
            return False
        if self.outputs.intersection(node.output):
            return False
        given = {name: read_tensor(self._constants[name], self.tables) for name in node.input if name}
        if sum(values.nbytes for values in given.values()) > _MOST_MOVED:
            return False
        made = ReferenceEvaluator(node).run(None, given)
        for name, values in zip(node.output, made, strict=True):
            self._constants[name] = externalize(name, np.ascontiguousarray(values), self.tables)
        return True

    def _index(self) -> None:
        self._makers = {name: node for node in self.nodes for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node_reads(node)):
                self._readers.setdefault(name, []).append(node)

    def maker(self, name: str, *ops: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, where there is one and it is one of `ops`."""
        node = self._makers.get(name)
        return node if node is not None and (not ops or node.op_type in ops) else None

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor, in order; those too of whose nested graphs one does."""
        return self._readers.get(name, [])

    def only_reader(self, name: str, *ops: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor, where nothing else does and it is one of `ops`."""
        readers = self.readers(name)
        if len(readers) != 1 or name in self.outputs or (ops and readers[0].op_type not in ops):
            return None
        return readers[0]

    def constant(self, name: str) -> NDArray[Any] | None:
        """A constant's values; None of what is none."""
        return read_tensor(self._constants[name], self.tables) if name in self._constants else None

    def integers(self, name: str) -> list[int] | None:
        """A small constant of whole numbers as a list."""
        values = self.constant(name)
        return None if values is None or values.dtype.kind not in "iu" else [int(v) for v in values.reshape(-1)]

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """A tensor's shape, None for what is not known of it."""
        return tuple(self._constants[name].dims) if name in self._constants else self._shapes.get(name)

    def is_zeros(self, name: str) -> bool:
        """Whether a tensor that is made for every request holds zeros and nothing else."""
        while (node := self.maker(name, *_MOVES, "Gather", "Expand", "Cast")) is not None:
            if node.op_type == "Concat":
                return all(map(self.is_zeros, node.input))
            name = node.input[0]
        values, maker = self.constant(name), self.maker(name, "ConstantOfShape")
        if maker is not None:
            return not maker.attribute or not numpy_helper.to_array(maker.attribute[0].t).any()
        return values is not None and values.size < LARGE and not values.any()

    def add_constant(self, values: NDArray[Any]) -> str:
        """A new constant's name."""
        name = self.new_name()
        self._constants[name] = externalize(name, values, self.tables)
        return name

    def add_table(self, rows: int, width: int, blocks: Iterable[NDArray[np.float32]]) -> str:
        """A new constant [rows, width] of float32, given block by block; a large one is only ever in its file."""
        return self.add_array((rows, width), np.dtype(np.float32), blocks)

    def add_array(self, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[NDArray[Any]]) -> str:
        """A new constant, given block by block of its first dimension; a large one is only ever in its file."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if self.tables is None or nbytes < LARGE:
            return self.add_constant(np.concatenate([np.empty((0, *shape[1:]), dtype), *blocks]))
        with tempfile.NamedTemporaryFile(dir=self.tables, prefix="scratch-", delete=False) as file:
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype).view(np.uint8).data)
        path, name = Path(file.name), self.new_name()
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        self._constants[name] = refer(name, rename(path, sha256(path)), shape, kind, nbytes)
        return name

    def new_name(self) -> str:
        """A name that no tensor has."""
        while True:
            self._count += 1
            name = f"rewritten{self._count}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def add(self, op: str, *inputs: str, outputs: Iterable[str] | None = None, **attributes: Any) -> str:
        """Add a node; returns its first output, which is a new tensor where `outputs` does not name one."""
        return str(self.add_node(op, *inputs, outputs=outputs, **attributes).output[0])

    def add_node(
        self, op: str, *inputs: str, outputs: Iterable[str] | None = None, **attributes: Any
    ) -> onnx.NodeProto:
        """Add a node; returns it."""
        made = [self.new_name()] if outputs is None else list(outputs)
        node = helper.make_node(op, list(inputs), made, **attributes)
        self.nodes.append(node)
        self._index()
        return node

    def remove(self, *nodes: onnx.NodeProto) -> None:
        """Take nodes out; what others read of them must be made anew."""
        gone = {id(node) for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in gone]
        self._index()

    def drop_unread(self) -> list[onnx.NodeProto]:
        """Take out the nodes that no output needs, and return them."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.sorted()):
            if needed.intersection(node.output):
                needed.update(node_reads(node))
                kept.append(node)
        gone = [node for node in self.nodes if not any(node is other for other in kept)]
        self.nodes = kept[::-1]
        self._index()
        return gone

    def constant_bytes(self) -> int:
        """Bytes of the constants that are read."""
        read = set(self._readers) | self.outputs
        return sum(_bytes(tensor) for name, tensor in self._constants.items() if name in read)

    def finish(self) -> onnx.ModelProto:
        """The rewritten model."""
        graph = self._model.graph
        nodes = self.sorted()
        read = {name for node in nodes for name in node_reads(node)} | self.outputs
        kept = [onnx.TensorProto.FromString(t.SerializeToString()) for n, t in self._constants.items() if n in read]
        names = [name for name in self._constants if name in read]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        for field in ("node", "initializer", "value_info"):
            graph.ClearField(field)
        graph.node.extend(copies)
        for name, tensor in zip(names, kept, strict=True):
            tensor.name = name
            graph.initializer.append(tensor)
        return self._model

    def sorted(self, nodes: list[onnx.NodeProto] | None = None) -> list[onnx.NodeProto]:
        """The nodes, or some of them, each after those it reads, else in the order they are in."""
        done: set[str] = set()
        ordered: list[onnx.NodeProto] = []
        placed: set[int] = set()

        def visit(node: onnx.NodeProto) -> None:
            stack = [(node, iter(node_reads(node)))]
            while stack:
                here, reads = stack[-1]
                maker = next((m for m in map(self._makers.get, reads) if m is not None and id(m) not in placed), None)
                if maker is not None and all(maker is not other for other, _ in stack):
                    stack.append((maker, iter(node_reads(maker))))
                    continue
                stack.pop()
                if id(here) not in placed:
                    placed.add(id(here))
                    done.update(here.output)
                    ordered.append(here)

        for node in self.nodes if nodes is None else nodes:
            visit(node)
        return ordered if nodes is None else [node for node in ordered if any(node is other for other in nodes)]


def blocks(table: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """A table's rows, some at a time."""
    for start in range(0, len(table), _BLOCK):
        yield table[start : start + _BLOCK]


def _bytes(tensor: onnx.TensorProto) -> int:
    count = int(np.prod(tensor.dims, dtype=np.int64))
    return (
        0
        if tensor.data_type == onnx.TensorProto.STRING
        else count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    )


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name; texts as str."""
    made = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in made.items()}


def _reads_instead(node: onnx.NodeProto, same: dict[str, str]) -> None:
    """Let a node and its nested graphs read one tensor instead of another."""
    for place, name in enumerate(node.input):
        node.input[place] = same.get(name, name)
    for graph in (graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)):
        for nested in graph.node:
            _reads_instead(nested, same)
        for value in graph.output:
            if value.name in same:  # a nested graph must make what it answers
                graph.node.add(op_type="Identity", input=[same[value.name]], output=[f"{value.name}__same"])
                value.name = f"{value.name}__same"


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # in C++; without shapes fewer rewrites apply
        graph = model.graph
    types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return {
        name: tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
        for name, tensor in types.items()
        if tensor.HasField("shape")
    }
