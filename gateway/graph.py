"""The ensemble as a graph: its steps, and which tensor goes from where to where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tristage.manifest import model_of

__all__ = ["INPUTS", "OUTPUTS", "Step", "edges", "read_steps"]

INPUTS = "inputs"  # the end of an edge that is no step: the raw columns
OUTPUTS = "outputs"  # and the answers


@dataclass(frozen=True)
class Step:
    """One Triton model of the ensemble.

    Attributes:
        model: its name on the server.
        name: the step's name in the stack; the model's where that is not known.
        reads: its own name of an input -> the ensemble's name of the tensor.
        writes: its own name of an output -> the ensemble's name of the tensor.
    """

    model: str
    name: str
    reads: Mapping[str, str]
    writes: Mapping[str, str]


def read_steps(config: Mapping[str, Any], names: Mapping[str, str]) -> tuple[Step, ...]:
    """The steps of an ensemble's configuration, each behind those it reads.

    Args:
        config: as Triton answers it.
        names: the steps' names in the stack, by model.
    """
    ready = {str(tensor["name"]) for tensor in config["input"]}
    waiting = [
        Step(
            str(step["model_name"]),
            names.get(model_of(str(step["model_name"])), str(step["model_name"])),
            dict(step["input_map"]),
            dict(step["output_map"]),
        )
        for step in config.get("ensemble_scheduling", {}).get("step", [])
    ]
    found: list[Step] = []
    while waiting:
        runnable = [step for step in waiting if ready.issuperset(step.reads.values())]
        if not runnable:  # Triton would not have loaded it
            raise ValueError(f"steps of {config['name']} wait for each other")
        found += runnable
        waiting = [step for step in waiting if step not in runnable]
        ready.update(tensor for step in runnable for tensor in step.writes.values())
    return tuple(found)


def edges(steps: tuple[Step, ...], outputs: tuple[str, ...]) -> list[tuple[str, str]]:
    """Who reads whom, by models' names, INPUTS and OUTPUTS; each pair once, in the steps' order."""
    maker = {tensor: step.model for step in steps for tensor in step.writes.values()}
    pairs = [(maker.get(tensor, INPUTS), step.model) for step in steps for tensor in step.reads.values()]
    pairs += [(maker.get(name, INPUTS), OUTPUTS) for name in outputs]
    return list(dict.fromkeys(pairs))
