"""How margins become answers, in NumPy: for engines that answer a forest's sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["POSTPROCESS"]

Values = NDArray[Any]


def _softmax(x: Values, *_: float) -> Values:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _sigmoid(x: Values, alpha: float, ratio: float) -> Values:
    with np.errstate(over="ignore"):  # exp of a far negative margin is infinite, and its sigmoid 0
        return np.asarray(1 / (1 + np.exp(-alpha * x)))


def _exponential(x: Values, *_: float) -> Values:
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(x))


# Treelite's names; argmax, which answers the label of the largest margin, is ours. Each takes margins [rows, n] as
# float64, sigmoid's alpha and isolation ratio's c, and answers [rows, n], or [rows, 1] for labels.
POSTPROCESS: dict[str, Callable[[Values, float, float], Values]] = {
    "identity": lambda x, a, c: x,
    "identity_multiclass": lambda x, a, c: x,
    "sigmoid": _sigmoid,
    "multiclass_ova": _sigmoid,
    "softmax": _softmax,
    "exponential": _exponential,
    "logarithm_one_plus_exp": lambda x, a, c: np.asarray(np.logaddexp(0, x)),
    "signed_square": lambda x, a, c: np.asarray(x * np.abs(x)),
    "exponential_standard_ratio": lambda x, a, c: np.asarray(np.exp2(-x / c)),
    "hinge": lambda x, a, c: np.asarray(x > 0, np.float64),
    "argmax": lambda x, a, c: np.asarray(x.argmax(axis=1, keepdims=True), np.float64),
}
