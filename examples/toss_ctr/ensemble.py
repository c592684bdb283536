"""The trained ensemble: folds, members, weights, calibration; and what it answers, asked of the training libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from examples.toss_ctr.folds import Fold
from examples.toss_ctr.metrics import average_precision, score, sigmoid, weighted_log_loss
from examples.toss_ctr.models import KINDS
from examples.toss_ctr.sizes import Model, Sizes

__all__ = ["Ensemble", "Member", "Scores", "scores_of"]


@dataclass(frozen=True)
class Scores:
    """How good answers are: average precision, weighted log loss, and the score of both."""

    ap: float
    wll: float
    score: float


def scores_of(clicked: NDArray[np.float32], probability: NDArray[np.floating]) -> Scores:
    """The scores of answers, [rows] each."""
    return Scores(
        average_precision(clicked, probability),
        weighted_log_loss(clicked, probability),
        score(clicked, probability),
    )


@dataclass(frozen=True)
class Member:
    """A model as it was trained for one fold: a step of the stack.

    Attributes:
        model: which model.
        fold: the fold that it did not learn from.
        artifact: the forest or the net.
    """

    model: Model
    fold: int
    artifact: Any

    @property
    def name(self) -> str:
        """Its step's."""
        return self.model.name if len(self.model.folds) == 1 else f"{self.model.name}_fold{self.fold}"


@dataclass(frozen=True)
class Ensemble:
    """What training made.

    Attributes:
        sizes: how large it is.
        folds: with their workflows.
        members: all that were trained.
        weights: a member's name -> its weight, 0 for what hill climbing left out; they sum to 1.
        temperature, bias: of the mean's logit.
        out_of_fold: "mean" (all models weigh the same), "climbed" and "calibrated" -> scores of out-of-fold answers.
        tried: the score that each hill climb ended with.
        held: raw rows that nobody learned from.
        clicked: which of them were, [rows].
        golden: the file of them.
        awkward: rows that nobody trains on.
        weights_file: the weights as JSON.
    """

    sizes: Sizes
    folds: tuple[Fold, ...]
    members: tuple[Member, ...]
    weights: Mapping[str, float]
    temperature: float
    bias: float
    out_of_fold: Mapping[str, Scores]
    tried: tuple[float, ...]
    held: pd.DataFrame
    clicked: NDArray[np.float32]
    golden: Path
    awkward: pd.DataFrame
    weights_file: Path

    def answer(self, rows: pd.DataFrame, every: bool = False) -> dict[str, NDArray[np.float64]]:
        """What the training libraries answer for raw rows: each fold's preprocessing once, then its members.

        Args:
            rows: raw.
            every: all members weigh the same; else as hill climbing found, and those of weight 0 are not asked.
        """
        weights = dict.fromkeys(self.weights, 1 / len(self.weights)) if every else self.weights
        mean = np.zeros(len(rows))
        for fold in self.folds:
            members = [member for member in self.members if member.fold == fold.number and weights[member.name]]
            if not members:
                continue
            features = fold.read(rows)
            for member in members:
                mean += weights[member.name] * KINDS[member.model.kind].ask(member.artifact, features)
        return {"click": sigmoid(mean / self.temperature + self.bias)}
