"""Greedy hill climbing with random restarts: which models, how often, make the best score of out-of-fold predictions.

A row is answered by the models of its own fold alone, which did not learn from it, so that a model's weight counts
against those it shares folds with. What is served is the mean of the folds: each weighs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from examples.toss_ctr.metrics import average_precision, score, sigmoid, weighted_log_loss

__all__ = ["Climbed", "Predictions", "blend", "calibrate", "climb"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """Out-of-fold predictions.

    Attributes:
        logits: [models, rows]; 0 where a model has none, since it was not trained for the row's fold.
        there: where it has one, [models, rows], 0 or 1.
        clicked: [rows], 0 or 1.
    """

    logits: Floats
    there: Floats
    clicked: NDArray[np.float32]


@dataclass(frozen=True)
class Climbed:
    """What hill climbing found.

    Attributes:
        counts: how often each model was taken, [models]; most often 0 for some.
        score: of the blend.
        tried: the score that each climb ended with.
    """

    counts: NDArray[np.int64]
    score: float
    tried: tuple[float, ...]


def blend(predictions: Predictions, counts: NDArray[np.integer]) -> Floats:
    """The weighted mean of the logits that each row has, [rows]."""
    return np.asarray(counts @ predictions.logits / (counts @ predictions.there))


def climb(
    predictions: Predictions, restarts: int, steps: int, seed: int, on_climb: Callable[[], None] = lambda: None
) -> Climbed:
    """Climb several times, and keep the best.

    Each climb begins with one model for every fold: the first with those of the best average precision, others with
    any. Then the model that makes the score best is taken once more, until none does.

    Args:
        predictions: of every model; every row needs one at least.
        restarts: climbs.
        steps: models that a climb takes at most.
        seed: of the beginnings.
        on_climb: called after each.
    """
    random = np.random.default_rng(seed)
    alone = [_alone(predictions, model) for model in range(len(predictions.logits))]
    ends: list[tuple[NDArray[np.int64], float]] = []
    for number in range(restarts):
        order = np.argsort(alone)[::-1] if number == 0 else random.permutation(len(alone))
        ends.append(_climb(predictions, _beginning(predictions, order), steps))
        on_climb()
    counts, best = max(ends, key=lambda end: end[1])
    return Climbed(counts, best, tuple(reached for _, reached in ends))


def _alone(predictions: Predictions, model: int) -> float:
    rows = predictions.there[model] > 0
    return average_precision(predictions.clicked[rows], predictions.logits[model, rows])


def _beginning(predictions: Predictions, order: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """The first models, in an order, that together have a prediction for every row."""
    counts = np.zeros(len(predictions.there), np.int64)
    for model in order:
        if (predictions.there[model] * (counts @ predictions.there == 0)).any():
            counts[model] = 1
    return counts


def _climb(predictions: Predictions, counts: NDArray[np.int64], steps: int) -> tuple[NDArray[np.int64], float]:
    best = score(predictions.clicked, sigmoid(blend(predictions, counts)))
    for _ in range(steps):
        above, below = counts @ predictions.logits, counts @ predictions.there
        reached = [
            score(predictions.clicked, sigmoid((above + logits) / (below + there)))
            for logits, there in zip(predictions.logits, predictions.there, strict=True)
        ]
        model = int(np.argmax(reached))
        if reached[model] <= best:
            break
        counts[model] += 1
        best = reached[model]
    return counts, best


def calibrate(clicked: NDArray[np.float32], logits: Floats) -> tuple[float, float]:
    """The temperature and the bias of sigmoid(logit / temperature + bias) with the lowest weighted log loss.

    They leave the order of rows as it is, and with it the average precision.
    """

    def loss(at: Floats) -> float:
        return weighted_log_loss(clicked, sigmoid(logits / np.exp(at[0]) + at[1]))

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10})
    return float(np.exp(found.x[0])), float(found.x[1])
