"""Matrix products, convolutions and recurrences in a graph, by the shapes that ONNX infers; and its look-ups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from tristage.errors import RepositoryError
from tristage.export.size.look_ups import Constant, look_ups
from tristage.export.size.work import Work

__all__ = ["Shapes", "graph_work"]

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor -> its shape in a request of one row; sizes that cannot be told count as 1."""

_Sizes = tuple[int | None, ...]  # None where inference cannot tell

_LAYERS = ("GRU", "LSTM", "RNN")
_ELEMENTWISE = ("Cast", "Identity", "LabelEncoder", "Where", "Gather")


def graph_work(paths: Sequence[Path], given: Shapes) -> tuple[Work, dict[str, tuple[int, ...]]]:
    """Count what graphs do for one row.

    Args:
        paths: the ONNX files of one program, whose tensors have names of their own; tables beside them are not read.
        given: shapes of inputs that are known better than the files say.

    Returns:
        The work, and the shapes of the graphs' tensors.

    Raises:
        RepositoryError: a file cannot be read.
    """
    model = _joined(paths)
    for value in model.graph.input:
        _set_shape(value, given.get(value.name, _shape(value)))
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")  # it names sizes that are now known
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = (*inferred.input, *inferred.value_info, *inferred.output)
    shapes = _backwards(
        model.graph, {value.name: _sizes(value) for value in known if value.type.tensor_type.HasField("shape")}
    )
    constants = _constants(model.graph)
    shapes |= {name: constant.shape for name, constant in constants.items()}
    work = look_ups(model.graph, constants, lambda name: _elements(shapes.get(name)))
    return work + Work(macs=_macs(model.graph, shapes)), shapes


def _joined(paths: Sequence[Path]) -> onnx.ModelProto:
    """Graphs that were cut from one, as one again: a look-up may begin in one and end in another."""
    joined = onnx.ModelProto()
    made: set[str] = set()
    for path in paths:
        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception as error:  # protobuf's own errors, or the system's
            raise RepositoryError(f"{path} cannot be read ({error}); export the stack again") from error
        if not made:
            joined.CopyFrom(model)
        else:
            joined.graph.node.extend(node for node in model.graph.node if not made.intersection(node.output))
            joined.graph.input.extend(value for value in model.graph.input if value.name not in made)
            joined.graph.output.extend(model.graph.output)
            joined.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in made)
        made = {name for node in joined.graph.node for name in node.output}
        made.update(each.name for each in (*joined.graph.input, *joined.graph.initializer))
    return joined


def _macs(graph: onnx.GraphProto, shapes: Shapes) -> int:
    return sum(_COUNTS[node.op_type](node, shapes) for node in graph.node if node.op_type in _COUNTS)


def _elements(shape: tuple[int, ...] | None) -> int:
    return int(np.prod(shape or (), dtype=np.int64))


def _product(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Of MatMul and Gemm: what comes out, times what is summed up."""
    left, right = (shapes.get(name, ()) for name in node.input[:2])
    if len(right) < 2:
        return _elements(left)  # with a vector
    turned = {attribute.name for attribute in node.attribute if attribute.name in ("transA", "transB") and attribute.i}
    rows = 1 if not left else _elements(left) // (left[-2] if "transA" in turned else left[-1])
    return rows * _elements(right[-2:])


def _convolution(node: onnx.NodeProto, shapes: Shapes) -> int:
    kernel = shapes.get(node.input[1])
    return _elements(shapes.get(node.output[0])) * _elements(None if kernel is None else kernel[1:])


def _layer(node: onnx.NodeProto, shapes: Shapes) -> int:
    """A GRU, LSTM or RNN node: the inputs are [steps, rows, width], the weights [directions, gates * width, ...]."""
    steps = shapes.get(node.input[0], (1,))[0]
    return steps * sum(_elements(shapes.get(name)) for name in node.input[1:3])


def _body(node: onnx.NodeProto, shapes: Shapes) -> int:
    """A Scan's graph, once for each step."""
    body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
    scanned = next(attribute.i for attribute in node.attribute if attribute.name == "num_scan_inputs")
    states = len(node.input) - scanned
    axes = next((list(a.ints) for a in node.attribute if a.name == "scan_input_axes"), [0] * scanned)
    first = shapes.get(node.input[states], ())
    steps = first[axes[0]] if len(first) > axes[0] else 1
    inner = dict(shapes) | {name: constant.shape for name, constant in _constants(body).items()}
    for place, (value, name) in enumerate(zip(body.input, node.input, strict=True)):
        shape = list(shapes.get(name, ()))
        if shape and place >= states:
            shape.pop(axes[place - states])
        inner[value.name] = tuple(shape)
    return steps * _macs(body, inner)


_COUNTS: dict[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "MatMul": _product,
    "Gemm": _product,
    "Conv": _convolution,
    "Scan": _body,
    **dict.fromkeys(_LAYERS, _layer),
}


def _constants(graph: onnx.GraphProto) -> dict[str, Constant]:
    made = {}
    for tensor in graph.initializer:
        made[tensor.name] = _constant(tensor)
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.HasField("t"):
                made[node.output[0]] = _constant(attribute.t)
    return made


def _constant(tensor: onnx.TensorProto) -> Constant:
    shape = tuple(tensor.dims)
    if tensor.data_type == onnx.TensorProto.STRING:
        return Constant(shape, tensor.data_type, sum(map(len, tensor.string_data)))
    width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return Constant(shape, tensor.data_type, _elements(shape) * width)


def _backwards(graph: onnx.GraphProto, sizes: dict[str, _Sizes]) -> dict[str, tuple[int, ...]]:
    """Shapes, where what is made of a tensor element by element tells what inference could not.

    Of texts that are split, only the lists that they become have a known length.
    """
    constants = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for node in reversed(graph.node):
        made = sizes.get(node.output[0])
        if node.op_type not in _ELEMENTWISE or made is None or None in made:
            continue
        if node.op_type == "Gather" and constants.get(node.input[0]) != 1:
            continue
        for name in node.input[node.op_type == "Gather" :]:
            if name not in constants and None in (sizes.get(name) or (None,)):
                sizes[name] = made
    return {name: tuple(size or 1 for size in shape) for name, shape in sizes.items()}


def _sizes(value: onnx.ValueInfoProto) -> _Sizes:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(size or 1 for size in _sizes(value))


def _set_shape(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    dims = value.type.tensor_type.shape
    del dims.dim[:]
    for size in shape:
        dims.dim.add(dim_value=size)
