"""How far narrow weights take a stack from its training libraries: measured on the golden rows, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.client.golden import largest_difference
from tristage.errors import ParityError
from tristage.export.check import run_placement
from tristage.export.lowered import LoweredStack
from tristage.export.net import Net
from tristage.export.place import Placement
from tristage.export.reference import output_answers
from tristage.weights import NarrowStep, NarrowWeights

__all__ = ["Measured", "measure_weights"]


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        weights: for the manifest.
        answers: output -> what the stack with narrow weights answers for the golden rows.
    """

    weights: NarrowWeights
    answers: Mapping[str, NDArray[Any]]


def measure_weights(
    lowered: LoweredStack,
    placement: Placement,
    answering: Placement,
    inputs: Mapping[str, NDArray[Any]],
    answers: Mapping[str, Mapping[str, NDArray[Any]]],
    kept: NDArray[np.bool_],
) -> Measured:
    """Run a stack with narrow weights on the golden rows.

    Args:
        lowered: the stack; which of its nets have narrow weights.
        placement: the same with narrow weights as Triton models, one a step.
        answering: the models that answer: the placement's own, or parts of them.
        inputs: the golden rows' tensors.
        answers: what the training libraries answered, by step and column.
        kept: [rows] booleans: the golden rows that count.

    Raises:
        ParityError: a net answers NaN or infinity where its training library answers a number, or the other way round.
    """
    tensors = run_placement(answering, inputs)
    models = {model.steps[0]: model for model in placement.models}
    steps = {}
    for step in lowered.steps:
        narrow = step.body.narrow if isinstance(step.body, Net) else None
        if narrow is None:
            continue
        difference = max(
            largest_difference(answers[step.name][column][kept], tensors[name][kept, at])
            for name, columns in models[step.name].columns.items()
            for at, (_, column) in enumerate(columns)
        )
        if not np.isfinite(difference):
            raise ParityError(
                f"step {step.name} with {narrow.format} weights answers no number where its training library does, or "
                "the other way round; nothing was exported: choose other weights, or leave them as they were trained"
            )
        steps[step.name] = NarrowStep(narrow.format, difference, narrow.before, narrow.after, tuple(narrow.left))
    wanted = {name: values[kept] for name, values in output_answers(lowered, answers).items()}
    served = {name: tensors[name][kept].reshape(values.shape) for name, values in wanted.items()}
    outputs = {name: largest_difference(values, served[name]) for name, values in wanted.items()}
    return Measured(NarrowWeights(steps, outputs), served)
