"""How margins become answers: every postprocessor as ONNX nodes, and in NumPy for the mean of a bag's margins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.export.onnx_graph import GraphBuilder

__all__ = ["POSTPROCESSORS", "Postprocessor"]


@dataclass(frozen=True)
class Postprocessor:
    """One way from margins [rows, n] to answers [rows, n], or [rows, 1] for labels.

    Attributes:
        nodes: (graph, margins' tensor, sigmoid's alpha, isolation ratio's c) -> the answers' tensor.
        values: the same in NumPy, on float64.
    """

    nodes: Callable[[GraphBuilder, str, float, float], str]
    values: Callable[[NDArray[Any], float, float], NDArray[Any]]


def _times(graph: GraphBuilder, tensor: str, factor: float) -> str:
    return tensor if factor == 1 else graph.add("Mul", tensor, graph.scalar(factor, "float32"))


def _softmax(x: NDArray[Any], *_: float) -> NDArray[Any]:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


_IDENTITY = Postprocessor(lambda graph, x, a, c: x, lambda x, a, c: x)
_SIGMOID = Postprocessor(
    lambda graph, x, a, c: graph.add("Sigmoid", _times(graph, x, a)),
    lambda x, a, c: np.asarray(1 / (1 + np.exp(-a * x))),
)

# Treelite's names; argmax, which answers the label of the largest margin, is ours
POSTPROCESSORS = {
    "identity": _IDENTITY,
    "identity_multiclass": _IDENTITY,
    "sigmoid": _SIGMOID,
    "multiclass_ova": _SIGMOID,
    "softmax": Postprocessor(lambda graph, x, a, c: graph.add("Softmax", x, axis=1), _softmax),
    "exponential": Postprocessor(lambda graph, x, a, c: graph.add("Exp", x), lambda x, a, c: np.asarray(np.exp(x))),
    "logarithm_one_plus_exp": Postprocessor(
        lambda graph, x, a, c: graph.add("Softplus", x), lambda x, a, c: np.asarray(np.logaddexp(0, x))
    ),
    "signed_square": Postprocessor(
        lambda graph, x, a, c: graph.add("Mul", x, graph.add("Abs", x)), lambda x, a, c: np.asarray(x * np.abs(x))
    ),
    "exponential_standard_ratio": Postprocessor(
        lambda graph, x, a, c: graph.add("Exp", _times(graph, x, -np.log(2) / c)),
        lambda x, a, c: np.asarray(np.exp2(-x / c)),
    ),
    "hinge": Postprocessor(
        lambda graph, x, a, c: graph.cast(graph.add("Greater", x, graph.scalar(0, "float32")), "bool", "float32"),
        lambda x, a, c: np.asarray(x > 0, np.float64),
    ),
    "argmax": Postprocessor(
        lambda graph, x, a, c: graph.cast(graph.add("ArgMax", x, axis=1, keepdims=1), "int64", "float32"),
        lambda x, a, c: np.asarray(x.argmax(axis=1, keepdims=True), np.float64),
    ),
}
