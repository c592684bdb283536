"""How margins become answers, as ONNX nodes; the same in NumPy is `tristage.serving.forest.postprocess`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tristage.export.onnx_graph import GraphBuilder

__all__ = ["POSTPROCESSORS"]

# (graph, margins' tensor [rows, n], sigmoid's alpha, isolation ratio's c) -> the answers' tensor
Nodes = Callable[[GraphBuilder, str, float, float], str]


def _times(graph: GraphBuilder, tensor: str, factor: float) -> str:
    return tensor if factor == 1 else graph.add("Mul", tensor, graph.scalar(factor, "float32"))


def _sigmoid(graph: GraphBuilder, margins: str, alpha: float, ratio: float) -> str:
    return graph.add("Sigmoid", _times(graph, margins, alpha))


POSTPROCESSORS: dict[str, Nodes] = {
    "identity": lambda graph, x, a, c: x,
    "identity_multiclass": lambda graph, x, a, c: x,
    "sigmoid": _sigmoid,
    "multiclass_ova": _sigmoid,
    "softmax": lambda graph, x, a, c: graph.add("Softmax", x, axis=1),
    "exponential": lambda graph, x, a, c: graph.add("Exp", x),
    "logarithm_one_plus_exp": lambda graph, x, a, c: graph.add("Softplus", x),
    "signed_square": lambda graph, x, a, c: graph.add("Mul", x, graph.add("Abs", x)),
    "exponential_standard_ratio": lambda graph, x, a, c: graph.add("Exp", _times(graph, x, -np.log(2) / c)),
    "hinge": lambda graph, x, a, c: graph.cast(graph.add("Greater", x, graph.scalar(0, "float32")), "bool", "float32"),
    "argmax": lambda graph, x, a, c: graph.cast(graph.add("ArgMax", x, axis=1, keepdims=1), "int64", "float32"),
}
