"""Triton's statistics before and after a cell: where the server spent its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tristage.loadtest._report import StepShare

__all__ = ["Counters", "between", "counters", "models_of", "shares"]

_PHASES = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Counters:
    """One model's running totals since it was loaded: requests answered, and nanoseconds spent on them.

    Attributes:
        count: requests answered without error.
        total_ns: from when a request reached the model until its answer left it.
        phases_ns: nanoseconds in queue, compute_input, compute_infer and compute_output, in this order.
    """

    count: int = 0
    total_ns: int = 0
    phases_ns: tuple[int, int, int, int] = (0, 0, 0, 0)


def models_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The models of an ensemble in their order, each once; the model itself where it is no ensemble."""
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    return tuple(dict.fromkeys(str(step["model_name"]) for step in steps)) or (str(config["name"]),)


def counters(statistics: Mapping[str, Any]) -> dict[str, Counters]:
    """Triton's answer as one Counters a model, its versions added up."""
    found: dict[str, Counters] = {}
    for model in statistics.get("model_stats", []):
        inference = model.get("inference_stats", {})
        success = inference.get("success", {})
        phases = tuple(int(inference.get(phase, {}).get("ns", 0)) for phase in _PHASES)
        before = found.get(model["name"], Counters())
        found[model["name"]] = Counters(
            count=before.count + int(success.get("count", 0)),
            total_ns=before.total_ns + int(success.get("ns", 0)),
            phases_ns=_sum4(before.phases_ns, phases),
        )
    return found


def between(before: Mapping[str, Counters], after: Mapping[str, Counters], model: str) -> Counters:
    """What `model` did between two readings."""
    old, new = before.get(model, Counters()), after.get(model, Counters())
    return Counters(
        count=new.count - old.count,
        total_ns=new.total_ns - old.total_ns,
        phases_ns=_sum4(new.phases_ns, tuple(-ns for ns in old.phases_ns)),
    )


def shares(
    models: Sequence[str], before: Mapping[str, Counters], after: Mapping[str, Counters]
) -> tuple[StepShare, ...]:
    """Each model's part of the time that all of them took between two readings; the parts add up to 1.

    Empty where no model took any time.
    """
    spent = {model: between(before, after, model) for model in models}
    whole = sum(sum(step.phases_ns) for step in spent.values())
    if whole <= 0:
        return ()
    return tuple(_share(model, step, whole) for model, step in spent.items())


def _share(model: str, step: Counters, whole: int) -> StepShare:
    queue, taking, infer, giving = (ns / 1e6 / max(step.count, 1) for ns in step.phases_ns)
    return StepShare(
        model=model,
        count=step.count,
        queue_ms=queue,
        compute_input_ms=taking,
        compute_infer_ms=infer,
        compute_output_ms=giving,
        share=sum(step.phases_ns) / whole,
    )


def _sum4(left: Sequence[int], right: Sequence[int]) -> tuple[int, int, int, int]:
    return (left[0] + right[0], left[1] + right[1], left[2] + right[2], left[3] + right[3])
