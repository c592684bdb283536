"""Training the ensemble: folds and their workflows, 36 models, hill climbing over what they say of their own fold."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.toss_ctr.climb import Predictions, blend, calibrate, climb
from examples.toss_ctr.ensemble import Ensemble, Member, scores_of
from examples.toss_ctr.folds import Fold, assign, fit_fold
from examples.toss_ctr.metrics import sigmoid
from examples.toss_ctr.models import KINDS
from examples.toss_ctr.rows import DAY, awkward_rows, draw
from examples.toss_ctr.sizes import Sizes

__all__ = ["stages_of", "train"]


def stages_of(sizes: Sizes) -> int:
    """How many stages `train` announces."""
    return 2 + sizes.folds + sum(len(model.folds) for model in sizes.models())


def train(sizes: Sizes, folder: Path, on_stage: Callable[[str], None] = lambda _: None) -> Ensemble:
    """Draw rows and train everything.

    Args:
        sizes: how large it is.
        folder: takes the golden rows, the weights, and the workflows' categories.
        on_stage: called with a few words before each stage.
    """
    on_stage("drawing rows")
    rows, clicked = draw(sizes)
    learn, held = rows.iloc[: sizes.rows], rows.iloc[sizes.rows :].reset_index(drop=True)
    yes = clicked[: sizes.rows]
    assigned = assign(learn[DAY].to_numpy(), yes, sizes.folds, sizes.seed)
    folds = []
    for number in range(sizes.folds):
        on_stage(f"fold {number}: fitting its workflow, and preprocessing once")
        folds.append(fit_fold(number, learn, assigned, sizes.length, folder))
    members = []
    for model in sizes.models():
        for number in model.folds:
            on_stage(f"fold {number}: {model.name}")
            artifact = KINDS[model.kind].train(sizes, folds[number], yes, model.seed + number)
            members.append(Member(model, number, artifact))
    on_stage("hill climbing")
    predictions = _out_of_fold(sizes, folds, members, yes)
    climbed = climb(predictions, sizes.restarts, sizes.steps, sizes.seed)
    best = blend(predictions, climbed.counts)
    temperature, bias = calibrate(yes, best)
    weights = _weights(sizes, members, climbed.counts)
    golden, file = folder / "golden.parquet", folder / "weights.json"
    held.to_parquet(golden)
    file.write_text(json.dumps(weights, indent=1) + "\n", encoding="utf-8")
    return Ensemble(
        sizes=sizes,
        folds=tuple(folds),
        members=tuple(members),
        weights=weights,
        temperature=temperature,
        bias=bias,
        out_of_fold={
            "mean": scores_of(yes, sigmoid(blend(predictions, np.ones_like(climbed.counts)))),
            "climbed": scores_of(yes, sigmoid(best)),
            "calibrated": scores_of(yes, sigmoid(best / temperature + bias)),
        },
        tried=climbed.tried,
        held=held,
        clicked=clicked[sizes.rows :],
        golden=golden,
        awkward=awkward_rows(held, sizes),
        weights_file=file,
    )


def _out_of_fold(
    sizes: Sizes, folds: Sequence[Fold], members: Sequence[Member], clicked: NDArray[np.float32]
) -> Predictions:
    """What every model says of the rows of the folds that it was trained for, by the member that did not see them."""
    names = [model.name for model in sizes.models()]
    logits = np.zeros((len(names), len(clicked)))
    there = np.zeros_like(logits)
    for member in members:
        fold, at = folds[member.fold], names.index(member.model.name)
        logits[at, fold.held] = KINDS[member.model.kind].ask(member.artifact, fold.features, fold.held)
        there[at, fold.held] = 1
    return Predictions(logits, there, clicked)


def _weights(sizes: Sizes, members: Sequence[Member], counts: NDArray[np.int64]) -> dict[str, float]:
    """What every member weighs: each fold the same, and within it as often as its model was taken."""
    taken = dict(zip((model.name for model in sizes.models()), counts.tolist(), strict=True))
    inside = [sum(taken[one.model.name] for one in members if one.fold == fold) for fold in range(sizes.folds)]
    return {one.name: taken[one.model.name] / inside[one.fold] / sizes.folds for one in members}
