"""PyTorch ranks NaN above all numbers; in ONNX Runtime's top-k nobody knows where it and its neighbours end up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tristage.export.net.model import Net
from tristage.export.onnx_graph import dtype_of

__all__ = ["nan_above_all"]


def nan_above_all(net: Net) -> Net:
    """The net with every TopK of floats ranking NaN as infinity, and answering it as what it is.

    Of values that are equal PyTorch promises no order, and ONNX Runtime answers the first ones first.
    """
    if not any(node.op_type == "TopK" for node in net.model.graph.node):
        return net
    model = onnx.ModelProto()
    model.CopyFrom(net.model)
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    nodes = []
    for node in model.graph.node:
        dtype = dtype_of(kinds[node.input[0]]) if node.op_type == "TopK" and kinds.get(node.input[0]) else ""
        nodes += _ranked(model.graph, node, dtype) if dtype in ("float32", "float64") else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return replace(net, model=model)


def _ranked(graph: onnx.GraphProto, node: onnx.NodeProto, dtype: str) -> list[onnx.NodeProto]:
    values, at = node.input[0], node.output[1] or f"{node.name}_at"
    nan, infinity, keys = (f"tristage_{node.output[0] or at}_{what}" for what in ("nan", "infinity", "keys"))
    graph.initializer.append(numpy_helper.from_array(np.array(np.inf, dtype), infinity))
    ranked = onnx.NodeProto()
    ranked.CopyFrom(node)
    ranked.input[0], ranked.output[0], ranked.output[1] = keys, f"{keys}_ranked", at
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
    return [
        helper.make_node("IsNaN", [values], [nan]),
        helper.make_node("Where", [nan, infinity, values], [keys]),
        ranked,
        helper.make_node("GatherElements", [values, at], [node.output[0] or f"{keys}_taken"], axis=axis),
    ]
