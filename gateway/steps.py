"""One row through the ensemble a step at a time, so that every step's answer can be seen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tristage.client._wire import Tensors
from tristage.gateway.triton import Served, Triton

__all__ = ["answer_by_steps"]


async def answer_by_steps(
    triton: Triton, served: Served, tensors: Tensors, deadline: float, headers: Mapping[str, str]
) -> dict[str, Any]:
    """Ask the models one by one, as the ensemble would, handing each what those before it answered.

    Args:
        triton: the connection.
        served: what it serves.
        tensors: the encoded row.
        deadline: of time.monotonic().
        headers: what Triton is told besides.

    Returns:
        {"steps": [{"step", "model", "ms", "outputs": [{"name", "dtype", "values"}]}], "prediction": {output: value}}

    Raises:
        ServerError: as `Triton.infer`.
    """
    known, told = dict(tensors), []
    for step in served.steps:
        began = time.perf_counter()
        inputs = {own: known[tensor] for own, tensor in step.reads.items()}
        answers = await triton.ask(step.model, inputs, list(step.writes), deadline, headers)
        took = (time.perf_counter() - began) * 1000
        made = {step.writes[own]: array for own, array in answers.items()}
        known.update(made)
        outputs = [
            {"name": name, "dtype": str(array.dtype), "values": array.ravel().tolist()} for name, array in made.items()
        ]
        told.append({"step": step.name, "model": step.model, "ms": took, "outputs": outputs})
    prediction = {
        column.name: known[column.name].item() if column.length is None else known[column.name].ravel().tolist()
        for column in served.signature.outputs
    }
    return {"steps": told, "prediction": prediction}
