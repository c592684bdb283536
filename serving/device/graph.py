"""An ONNX graph that torch computes on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tristage.serving.device.operators import OPERATORS, SIZES, Faults, Node, Unsupported
from tristage.serving.device.tables import LARGE, Table
from tristage.serving.graph import GraphError, Tensor, asked, triton_type

__all__ = ["DeviceGraph", "read_graph"]

_SMALL = 4096  # numbers of a constant that may be asked for as sizes


@dataclass(frozen=True)
class Step:
    """A node that is opened.

    Attributes:
        node: what it is.
        compute: its function of tensors.
        sizes: which of its inputs it takes as lists of numbers.
        on_host: whether it computes sizes, which stay on the host.
        done: tensors that nobody reads after it.
    """

    node: Node
    compute: Callable[..., Any]
    sizes: tuple[int, ...]
    on_host: bool
    done: tuple[str, ...]


@dataclass(frozen=True)
class DeviceGraph:
    """An opened graph.

    Attributes:
        name: what people call it.
        given: what it is given, by its own names.
        outputs: what it makes.
        steps: its nodes, in order.
        constants: its constants on the device.
        sizes: those of them that may be sizes, on the host.
    """

    name: str
    given: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, torch.Tensor | Table]
    sizes: Mapping[str, torch.Tensor]

    @classmethod
    def of(
        cls,
        name: str,
        model: onnx.ModelProto,
        folder: Path,
        device: torch.device,
        table_of: Callable[[torch.Tensor], Table],
        faults: Faults,
    ) -> DeviceGraph:
        """Bring a graph to a device.

        Args:
            name: what people call it.
            model: the graph.
            folder: where its external data lies.
            device: where it is computed.
            table_of: places a large table.
            faults: takes what is wrong in rows.

        Raises:
            Unsupported: a node cannot be computed on a device.
        """
        graph = model.graph
        computed = [node for node in graph.node if node.op_type != "Constant"]
        for node in computed:
            if _name(node) not in OPERATORS:
                raise Unsupported(f"{_name(node)} is no operator of a device")
        texts = [value.name for value in (*graph.input, *graph.output) if _kind(value) == TensorProto.STRING]
        if texts:
            raise Unsupported(f"{texts[0]} is a text")
        values = {tensor.name: _constant(tensor, folder) for tensor in graph.initializer}
        values |= {node.output[0]: _said(node) for node in graph.node if node.op_type == "Constant"}
        looked_up = _looked_up(computed)
        constants = {
            name: table_of(value) if name in looked_up and _bytes(value) >= LARGE else value.to(device)
            for name, value in values.items()
        }
        sizes = {name: value for name, value in values.items() if value.numel() <= _SMALL}
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        nodes = [_node(node, opsets, device, faults) for node in computed]
        makes = tuple(value.name for value in graph.output)
        steps = tuple(_steps(nodes, makes, constants, sizes))
        return cls(name, tuple(map(_tensor, graph.input)), tuple(map(_tensor, graph.output)), steps, constants, sizes)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What is asked of a caller; a fingerprint is asked for as the text it is made of."""
        return tuple({tensor.name: tensor for tensor in map(asked, self.given)}.values())

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of what it is given."""
        return tuple(tensor.name for tensor in self.given)

    def run(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Evaluate the graph; nothing waits for the device.

        Args:
            tensors: for every one of `reads` a tensor on the device, [rows, k].

        Returns:
            For every output a tensor [rows, k].
        """
        known: dict[str, torch.Tensor] = {name: tensors[name] for name in self.reads}
        for step in self.steps:
            given = [self._operand(step, known, at, name) for at, name in enumerate(step.node.reads)]
            while given and given[-1] is None:
                given.pop()
            made = step.compute(*given)
            made = made if isinstance(made, (tuple, list)) else (made,)
            known.update(zip(step.node.makes, made, strict=False))
            for name in step.done:
                del known[name]
        return {tensor.name: known[tensor.name] for tensor in self.outputs}

    def _operand(self, step: Step, known: Mapping[str, torch.Tensor], at: int, name: str) -> Any:
        if not name:
            return None
        if at in step.sizes:
            return (known[name] if name in known else self.sizes[name]).reshape(-1).tolist()
        if step.on_host:
            return known[name] if name in known else self.sizes[name]
        if name not in known:
            return self.constants[name]
        return known[name].to(step.node.device)  # sizes come from the host


def read_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without its external data; raises GraphError."""
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's and onnx's errors share no base class
        raise GraphError(f"{path} cannot be opened: {error}") from error


def _looked_up(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """What is read by look-ups of whole rows alone."""
    rows: set[str] = set()
    else_: set[str] = set()
    for node in nodes:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        by_row = node.op_type == "Gather" and axis == 0
        for at, name in enumerate(node.input):
            (rows if by_row and at == 0 else else_).add(name)
    return rows - else_


def _bytes(value: torch.Tensor) -> int:
    return int(value.numel() * value.element_size())


def _steps(
    nodes: Sequence[Node], makes: Sequence[str], constants: Mapping[str, Any], known_sizes: Mapping[str, torch.Tensor]
) -> list[Step]:
    """Nodes with where they are computed, and what may be forgotten after them."""
    last = {name: number for number, node in enumerate(nodes) for name in (*node.reads, *node.makes)}
    kept = {*makes, *constants, ""}
    host: set[str] = set()
    steps = []
    for number, node in enumerate(nodes):
        sizes = SIZES[node.operator]
        for at, name in enumerate(node.reads):
            if at in sizes and name and name not in host and name not in known_sizes:
                raise Unsupported(f"{node.operator} {node.name}, whose sizes depend on what rows hold")
        free = [name for name in node.reads if name]
        on_host = node.operator in ("Shape", "Size") or (
            any(name in host for at, name in enumerate(node.reads) if at not in sizes)
            and all(name in host or name in known_sizes for name in free)
        )
        if on_host:
            host.update(node.makes)
        done = {name for name in (*node.reads, *node.makes) if last[name] == number} - kept
        takes_any = node.operator in ("Shape", "Size")  # a tensor on the device, of which only the size is read
        steps.append(Step(node, OPERATORS[node.operator](node), sizes, on_host and not takes_any, tuple(sorted(done))))
    return steps


def _node(node: onnx.NodeProto, opsets: Mapping[str, int], device: torch.device, faults: Faults) -> Node:
    says = {attribute.name: _attribute(attribute) for attribute in node.attribute}
    name = node.name or node.output[0]
    opset = opsets.get(node.domain, 1)
    return Node(name, _name(node), says, tuple(node.input), tuple(node.output), opset, device, faults)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _name(node: onnx.NodeProto) -> str:
    return f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _kind(value: onnx.ValueInfoProto) -> int:
    return int(value.type.tensor_type.elem_type)


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(_kind(value)))
    dims = value.type.tensor_type.shape.dim
    return Tensor(value.name, triton_type(dtype), dtype, dims[1].dim_value if len(dims) == 2 else 0)


def _said(node: onnx.NodeProto) -> torch.Tensor:
    """What a node Constant says."""
    (attribute,) = node.attribute
    value = _attribute(attribute)
    dtype = np.float32 if attribute.name.startswith("value_float") else None
    return torch.from_numpy(np.array(value, dtype))


def _constant(tensor: TensorProto, folder: Path) -> torch.Tensor:
    """A constant as a tensor on the host; a large one is mapped from its file."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    if tensor.data_location != TensorProto.EXTERNAL:
        return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
    dtype, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
    offset = int(said.get("offset", 0))
    mapped = np.memmap(folder / said["location"], dtype, "c", offset, shape)  # "c": torch wants it writable
    return torch.from_numpy(mapped)
