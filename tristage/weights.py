"""Narrow weights: which formats there are, and what a manifest says of the steps that have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["WEIGHT_FORMATS", "NarrowStep", "NarrowWeights"]

WEIGHT_FORMATS = ("float16", "bfloat16", "int8")


@dataclass(frozen=True)
class NarrowStep:
    """A net whose weights are narrow.

    Attributes:
        format: one of WEIGHT_FORMATS.
        difference: the largest absolute difference of its answers from the training library's, on the golden rows.
        before: bytes of the weights that became narrow, as float32.
        after: bytes of them now.
        left: the weights that stayed float32, and why.
    """

    format: str
    difference: float
    before: int
    after: int
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class NarrowWeights:
    """What narrow weights cost and save.

    Attributes:
        steps: step -> its weights.
        outputs: output of the stack -> the largest absolute difference of its answers from the training libraries', on
            the golden rows.
    """

    steps: Mapping[str, NarrowStep]
    outputs: Mapping[str, float]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> NarrowWeights:
        """Read back what a manifest says; raises KeyError or TypeError where it says something else."""
        steps = {step: NarrowStep(**{**its, "left": tuple(its["left"])}) for step, its in said["steps"].items()}
        return cls(steps, {output: float(difference) for output, difference in said["outputs"].items()})
