"""Runs a placement in this process, without Triton, and compares every answer with the training libraries'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ParityError
from tristage.export.place import Placement

__all__ = ["check_parity", "run_placement"]


def run_placement(placement: Placement, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every tensor of a placement for encoded rows, by name; chunks of the signature's max_batch.

    Args:
        placement: the stack as Triton models.
        inputs: the raw columns' tensors, as tristage.client.codec.encode makes them.
    """
    import onnxruntime

    tensors: dict[str, NDArray[Any]] = dict(inputs)
    rows = len(next(iter(inputs.values())))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for model in placement.models:
        session = onnxruntime.InferenceSession(
            model.graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [tensor.name for tensor in model.outputs]
        parts = [
            session.run(
                names, {t.name: tensors[t.name][start : start + placement.signature.max_batch] for t in model.inputs}
            )
            for start in range(0, rows, placement.signature.max_batch)
        ]
        tensors.update({name: np.concatenate(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)})
    return tensors


def check_parity(
    placement: Placement,
    inputs: Mapping[str, NDArray[Any]],
    answers: Mapping[str, Mapping[str, NDArray[Any]]],
    tolerance: float,
) -> dict[str, float]:
    """Compare every step's answers, then say the largest difference of each model step.

    Args:
        placement: the stack as Triton models.
        inputs: the golden rows' tensors.
        answers: what the training libraries answered, by step and column.
        tolerance: largest absolute difference allowed.

    Returns:
        model step -> largest absolute difference.

    Raises:
        ParityError: a step differs; the message names the first, and the row.
    """
    tensors = run_placement(placement, inputs)
    differences = {}
    for model in placement.models:
        served = tensors.get(f"{model.step}__out")
        if served is None:
            continue
        expected = np.stack(list(answers[model.step].values()), axis=1)
        difference = np.abs(served.astype(np.float64) - expected.astype(np.float64))
        # both NaN is agreement, one NaN is not
        difference = np.where(np.isnan(served) & np.isnan(expected), 0.0, np.nan_to_num(difference, nan=np.inf))
        differences[model.step] = float(difference.max())
        if differences[model.step] > tolerance:
            row, column = np.unravel_index(int(difference.argmax()), difference.shape)
            name = list(answers[model.step])[column]
            raise ParityError(
                f"step {model.step} differs from its training library by {differences[model.step]:.3g} (row {row}, "
                f"{name}: {expected[row, column]:.6g} became {served[row, column]:.6g}); nothing was exported"
            )
    return differences
