"""The challenge's score: average precision, and a log loss in which clicks and all else weigh the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from examples.recsys2021.metrics import average_precision

__all__ = ["average_precision", "score", "sigmoid", "weighted_log_loss"]


def score(clicked: NDArray[np.float32], probability: NDArray[np.floating]) -> float:
    """0.5 AP + 0.5 / (1 + WLL): 1 is perfect."""
    return 0.5 * average_precision(clicked, probability) + 0.5 / (1 + weighted_log_loss(clicked, probability))


def weighted_log_loss(clicked: NDArray[np.float32], probability: NDArray[np.floating]) -> float:
    """The mean of two means: of -log(p) over clicks, of -log(1 - p) over all else; p is cut to 1e-15 from 0 and 1."""
    inside = np.clip(probability.astype(np.float64), 1e-15, 1 - 1e-15)
    yes = clicked > 0
    return float(-(np.log(inside[yes]).mean() + np.log1p(-inside[~yes]).mean()) / 2)


def sigmoid(logit: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 / (1 + exp(-logit))."""
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the answer 0
        return np.asarray(1 / (1 + np.exp(-logit.astype(np.float64))))
