"""Loops that are GRU or LSTM layers: Keras's, as tf2onnx writes them.

Which of a loop's constants are which weights is guessed from their shapes; then the loop is run on random rows, and the
guess is taken if the layer answers the same. So it does not hang on how a loop's body is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tristage.export.onnx_graph import IR_VERSION, OPSET, node_reads
from tristage.export.rewrites.cell import Cell
from tristage.export.rewrites.editable import EditableGraph

__all__ = ["Recognised", "recognise"]

_ROWS = 5
_AGREE = 1e-5  # a float32 loop against the layer in float64


@dataclass(frozen=True)
class Recognised:
    """A loop that is a layer, from states of zeros.

    Attributes:
        cell: its weights.
        inputs: [steps, rows, in].
        mask: [steps, rows, 1] booleans; None without.
        zeros: whether a step that the mask passes over shows zeros.
        outputs: the loop's outputs that are read -> "every", "last", "h" or "c", see `Cell.answers`.
    """

    cell: Cell
    inputs: str
    mask: str | None
    zeros: bool
    outputs: Mapping[str, str]


def recognise(graph: EditableGraph, loop: onnx.NodeProto) -> Recognised | None:
    """The layer that a loop is; None where it is none that is known."""
    read = [name for name in loop.output if name and (graph.readers(name) or name in graph.outputs)]
    outer = [name for name in dict.fromkeys(node_reads(loop)) if name]
    wide = [n for n in outer if graph.constant(n) is None and len(graph.shape(n) or ()) == 3 and n not in loop.input]
    masks = [name for name in wide if (graph.shape(name) or ())[2] == 1]
    states = [name for name in loop.input[2:] if graph.constant(name) is None and graph.is_zeros(name)]
    for inputs in wide:
        mask = next((name for name in masks if name != inputs), None)
        steps, _, width = graph.shape(inputs) or (None, None, None)
        steps = steps or (graph.integers(loop.input[0]) or [0])[0]  # as often as the loop goes round
        if not steps or not width:
            continue
        given: dict[str, NDArray[Any]] = {}
        draw = np.random.default_rng(0)
        given[inputs] = draw.normal(size=(steps, _ROWS, width)).astype(np.float32)
        if mask is not None:
            given[mask] = draw.random((steps, _ROWS, 1)) < 0.6
            given[mask][:, 0] = False  # a row without a step
        for cell in _guesses(graph, loop, width):
            zeros = {name: np.zeros((_ROWS, cell.width), np.float32) for name in states}
            made = _run(graph, loop, {**given, **zeros}, read)
            if made is None:
                break
            for shows_zeros in (False, True):
                answers = cell.answers(given[inputs].astype(np.float64), given.get(mask or ""), shows_zeros)
                outputs = {name: _which(values, answers) for name, values in zip(read, made, strict=True)}
                if all(outputs.values()):
                    return Recognised(cell, inputs, mask, shows_zeros, {n: w for n, w in outputs.items() if w})
    return None


def _which(values: NDArray[Any], answers: Mapping[str, NDArray[np.float64]]) -> str | None:
    """Which of a layer's answers a loop's output is."""
    for name, answer in answers.items():
        if values.shape == answer.shape and np.allclose(values, answer, rtol=0, atol=_AGREE):
            return name
    return None


def _guesses(graph: EditableGraph, loop: onnx.NodeProto, width: int) -> Iterator[Cell]:
    """What the layer could be, from the shapes of the constants that the loop reads."""
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    constants = [values for name in dict.fromkeys(node_reads(loop)) if (values := graph.constant(name)) is not None]
    constants += [numpy_helper.to_array(tensor) for tensor in body.initializer]
    constants += [numpy_helper.to_array(n.attribute[0].t) for n in body.node if n.op_type == "Constant"]
    constants = [values for values in constants if values.dtype == np.float32 and values.ndim in (1, 2)]
    matrices = [values for values in constants if values.ndim == 2 and len(values) > 2]
    for kernel, recurrent in product(matrices, matrices):
        gates = kernel.shape[1] // len(recurrent)
        fits = kernel.shape == (width, gates * len(recurrent)) and recurrent.shape[1] == kernel.shape[1]
        if kernel is recurrent or gates not in (3, 4) or not fits:
            continue
        size = kernel.shape[1]
        biases: list[NDArray[Any]] = [values for values in constants if values.shape in ((size,), (1, size), (2, size))]
        for bias in (*biases, np.zeros((1, size), np.float32)):
            both = bias.reshape(-1, size)
            own, late = both[0], both[1] if len(both) == 2 else np.zeros(size, np.float32)
            if gates == 4:
                order = [0, 3, 1, 2]  # Keras's gates are i, f, c, o
                move = np.concatenate([np.arange(len(recurrent)) + gate * len(recurrent) for gate in order])
                yield Cell("LSTM", kernel[:, move], recurrent[:, move], own[move], late[move])
            else:
                for reset_after in (True, False):
                    yield Cell("GRU", kernel, recurrent, own, late, reset_after)


def _run(
    graph: EditableGraph, loop: onnx.NodeProto, given: Mapping[str, NDArray[Any]], outputs: list[str]
) -> list[NDArray[Any]] | None:
    """What the loop answers; None where it reads more than is given."""
    import onnxruntime

    nodes, constants, waiting, seen = [loop], {}, list(node_reads(loop)), set(given)
    while waiting:
        name = waiting.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        values, maker = graph.constant(name), graph.maker(name)
        if values is not None:
            constants[name] = numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
        elif maker is not None:
            nodes.append(maker)
            waiting += node_reads(maker)
    kinds = {name: TensorProto.BOOL if values.dtype == bool else TensorProto.FLOAT for name, values in given.items()}
    ordered = [node for node in graph.nodes if any(node is other for other in nodes)]
    made = helper.make_graph(
        ordered,
        "loop",
        [helper.make_tensor_value_info(name, kinds[name], values.shape) for name, values in given.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        list(constants.values()),
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [np.asarray(values) for values in session.run(outputs, dict(given))]
    except Exception:  # of ONNX Runtime: the loop is another than was guessed
        return None
