"""A graph cut in two: what depends on texts, which the host computes, and all else."""

from __future__ import annotations

import onnx
import onnxruntime
from onnx import TensorProto, helper

from tristage.serving.graph import Graph

__all__ = ["cut_texts", "open_model"]


def cut_texts(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto] | None:
    """Take apart what makes or reads texts, with all that it needs; None where nothing or everything does.

    Args:
        model: the graph; types of its inputs and outputs are said.

    Returns:
        What the host computes, and what is computed of its answers and of the inputs. None also where a text is an
        output, a constant of the host's lies in another file, or a tensor between the two has no known type.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    texts = {name for name, value in values.items() if value.type.tensor_type.elem_type == TensorProto.STRING}
    texts |= {name for name, tensor in constants.items() if tensor.data_type == TensorProto.STRING}
    needed: set[str] = set()
    hosts = []
    for node in reversed(model.graph.node):
        if texts.union(needed).intersection(node.output) or texts.intersection(node.input):
            hosts.append(node)
            needed.update(node.input)
    hosts.reverse()
    made = {name for node in hosts for name in node.output}
    others = [node for node in model.graph.node if not made.intersection(node.output)]
    answers = [value.name for value in model.graph.output]
    read = {name for node in others for name in node.input}.union(answers)
    between = [name for node in hosts for name in node.output if name in read]
    if not hosts or not others or texts.intersection(between) or not set(between) <= set(values):
        return None
    if any(
        constants[name].data_location == TensorProto.EXTERNAL
        for node in hosts
        for name in node.input
        if name in constants
    ):
        return None
    handed = [name for name in answers if name in between]  # a model's outputs are nodes' of its own
    host = _part(model, hosts, values, between)
    device = _part(model, others, values, [name for name in answers if name not in handed])
    return host, device


def _part(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], values: dict[str, onnx.ValueInfoProto], outputs: list[str]
) -> onnx.ModelProto:
    made = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    own = {tensor.name for tensor in constants}
    graph = helper.make_graph(
        nodes,
        "graph",
        [values[name] for name in read if name not in own],
        [values[name] for name in outputs],
        constants,
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def open_model(model: onnx.ModelProto, threads: int) -> Graph:
    """A graph that is not in a file, opened on the host."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return Graph.of(onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]))
