"""Mean steps: weighted, over predictions or their logits, calibrated by a temperature and a bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tristage.export.onnx_graph import GraphBuilder

__all__ = ["Mean"]

EDGE = 2.0**-24  # half of float32's step below 1: a prediction nearer to 0 or 1 counts as this far from it


@dataclass(frozen=True)
class Mean:
    """The mean of equally wide feeds.

    Attributes:
        weights: one for each feed, which sum to 1; None where all weigh the same.
        average: what the mean is taken of: "predictions"; "logits", log(p / (1 - p)) of predictions, whose mean's
            sigmoid is answered; or "margins", the same of feeds that are logits already.
        temperature: what the mean's logit is divided by.
        bias: what is added to it then.
    """

    weights: tuple[float, ...] | None = None
    average: str = "predictions"
    temperature: float = 1.0
    bias: float = 0.0

    @property
    def calibrated(self) -> bool:
        """Whether temperature and bias change anything."""
        return (self.temperature, self.bias) != (1.0, 0.0)

    def predict(self, feeds: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """What NumPy answers, in float64, for feeds [rows, columns]."""
        if self.weights is None and self.average == "predictions" and not self.calibrated:
            return np.asarray(np.mean(list(feeds), axis=0))
        parts = np.stack([feed.astype(np.float64) for feed in feeds])
        parts = _logit(parts) if self.average == "logits" else parts
        mean = parts.mean(axis=0) if self.weights is None else np.tensordot(np.array(self.weights), parts, axes=1)
        if self.average != "predictions" or self.calibrated:
            logit = _logit(mean) if self.average == "predictions" else mean
            with np.errstate(over="ignore"):  # exp of a large number is infinite, and the answer 0
                mean = 1.0 / (1.0 + np.exp(-(logit / self.temperature + self.bias)))
        return np.asarray(mean, np.float32)

    def lower(self, graph: GraphBuilder, feeds: Sequence[str]) -> str:
        """The same as nodes on float32 tensors; the name of the answer's."""
        parts = [_lower_logit(graph, feed) for feed in feeds] if self.average == "logits" else list(feeds)
        if self.weights is None:
            mean = graph.add("Mean", *parts)
        else:
            weighted = zip(parts, self.weights, strict=True)
            mean = graph.add("Sum", *(graph.add("Mul", part, graph.scalar(w, "float32")) for part, w in weighted))
        if self.average == "predictions" and not self.calibrated:
            return mean
        logit = _lower_logit(graph, mean) if self.average == "predictions" else mean
        if self.temperature != 1.0:
            logit = graph.add("Div", logit, graph.scalar(self.temperature, "float32"))
        if self.bias != 0.0:
            logit = graph.add("Add", logit, graph.scalar(self.bias, "float32"))
        return graph.add("Sigmoid", logit)


def _logit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(values, EDGE, 1.0 - EDGE)  # keeps NaN
    return np.asarray(np.log(inside) - np.log1p(-inside))


def _lower_logit(graph: GraphBuilder, tensor: str) -> str:
    low, high = (graph.scalar(value, "float32") for value in (EDGE, 1.0 - EDGE))
    inside = graph.add("Clip", tensor, low, high)
    rest = graph.add("Sub", graph.scalar(1.0, "float32"), inside)
    return graph.add("Sub", graph.add("Log", inside), graph.add("Log", rest))
