"""Workflows that NVTabular itself serves: that rows are answered alone as among others, and what a call costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError, ParityError
from tristage.export.check import distance, open_model
from tristage.export.lowered import LoweredStack, Workflow
from tristage.export.place import PlacedModel, Placement
from tristage.export.workflow import InterpretedWorkflow
from tristage.serving.graph import GraphError

__all__ = ["Fallback", "try_fallbacks"]

_CALLS = 16


@dataclass(frozen=True)
class Fallback:
    """A step that NVTabular itself serves.

    Attributes:
        step: its name.
        reason: which operator cannot be compiled, and why.
        milliseconds: what a call of one row took, the median of 16 on this machine.
    """

    step: str
    reason: str
    milliseconds: float


def try_fallbacks(
    lowered: LoweredStack, placement: Placement, inputs: Mapping[str, NDArray[Any]] | None, tolerance: float
) -> tuple[Fallback, ...]:
    """Ask every workflow that NVTabular itself serves about single rows.

    Args:
        lowered: the stack.
        placement: the same as Triton models, one a step.
        inputs: the golden rows' tensors; None without, then it is a row of zeros.
        tolerance: largest difference allowed.

    Raises:
        ParityError: a row alone is answered otherwise than among others: an operator mixes rows.
        ArtifactError: NVTabular cannot transform a row.
    """
    served = {step.name: step.body.served for step in lowered.steps if isinstance(step.body, Workflow)}
    found = []
    for model in placement.models:
        workflow = served.get(model.steps[0])
        if isinstance(workflow, InterpretedWorkflow):
            given = inputs
            if given is None:
                companion = workflow.file.companion
                given = {c.name: np.array([companion[c.name]], c.numpy_dtype) for c in workflow.file.inputs}
            try:
                milliseconds = _try(model, workflow.reason, given, tolerance)
            except GraphError as error:
                raise ArtifactError(f"step {model.steps[0]}: {error}") from error
            found.append(Fallback(model.steps[0], workflow.reason, milliseconds))
    return tuple(found)


def _try(model: PlacedModel, reason: str, inputs: Mapping[str, NDArray[Any]], tolerance: float) -> float:
    """Compare rows alone with the same rows among all; the median of the milliseconds that one took."""
    run = open_model(model).run
    given = {tensor.name: inputs[tensor.name] for tensor in model.inputs}
    together = run(given)
    took = []
    for row in np.linspace(0, len(next(iter(given.values()))) - 1, _CALLS).astype(int).tolist():
        began = time.perf_counter()
        alone = run({name: array[row : row + 1] for name, array in given.items()})
        took.append(time.perf_counter() - began)
        for name, columns in model.columns.items():
            off = distance(alone[name][0], together[name][row])
            if off.max(initial=0) > tolerance:
                at = int(off.argmax())
                raise ParityError(
                    f"step {model.steps[0]}: golden row {row} is answered otherwise alone than among other rows "
                    f"({columns[at][1] if len(columns) == len(off) else name}: {alone[name][0][at]} and "
                    f"{together[name][row][at]}), so that an operator mixes rows, and no server knows which rows "
                    f"come together; nothing was exported. It would be served by NVTabular itself: {reason}"
                )
    return statistics.median(took) * 1000
