"""The challenge's two metrics, each averaged over the five author groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.recsys2021 import TARGETS

__all__ = ["average_precision", "grouped_scores", "relative_cross_entropy"]


def average_precision(truth: NDArray[Any], score: NDArray[Any]) -> float:
    """Area under the precision-recall steps, equal scores taken together; NaN where nothing is positive.

    Args:
        truth: [rows], 0 or 1.
        score: [rows], higher for likelier.
    """
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order], dtype=np.float64)
    if not len(hits) or hits[-1] == 0:
        return float("nan")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(hits) - 1)  # the last row of each run of equal scores
    precision = hits[ends] / (ends + 1)
    recall = hits[ends] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def relative_cross_entropy(truth: NDArray[Any], score: NDArray[Any]) -> float:
    """100 * (1 - CE / CE of always answering the rows' own rate): 0 is no better than that, 100 is perfect.

    Args:
        truth: [rows], 0 or 1.
        score: [rows], probabilities; cut to 1e-15 from 0 and 1.
    """
    rate = np.full(len(truth), np.mean(truth))
    return float(100.0 * (1.0 - _cross_entropy(truth, score) / _cross_entropy(truth, rate)))


def grouped_scores(truth: NDArray[Any], score: NDArray[Any], group: NDArray[Any]) -> Mapping[str, dict[str, float]]:
    """Both metrics of the four targets, averaged over the groups of authors.

    Args:
        truth: [rows, 4], 0 or 1, in the order of TARGETS.
        score: [rows, 4], probabilities.
        group: [rows], the author's group.

    Returns:
        {"ap": {target: ..., "average": ...}, "rce": the same}; a group without positives of a target is left out of
        that target's average.
    """
    made: dict[str, dict[str, float]] = {}
    groups = [group == value for value in np.unique(group)]

    def mean(metric: Any, at: int) -> float:
        return float(np.mean([metric(truth[rows, at], score[rows, at]) for rows in groups if truth[rows, at].any()]))

    for name, metric in (("ap", average_precision), ("rce", relative_cross_entropy)):
        each = {target: mean(metric, at) for at, target in enumerate(TARGETS)}
        made[name] = {**each, "average": float(np.mean(list(each.values())))}
    return made


def _cross_entropy(truth: NDArray[Any], score: NDArray[Any]) -> float:
    cut = np.clip(score.astype(np.float64), 1e-15, 1 - 1e-15)
    return float(-np.mean(np.where(truth > 0, np.log(cut), np.log1p(-cut))))
