"""What `tristage tune` measured: which engine answers a forest step at which batch size, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Chosen", "ForestTuning", "Tuning"]


@dataclass(frozen=True)
class Chosen:
    """An engine, and the most rows that it answers at once; None for any number."""

    rows: int | None
    engine: str


@dataclass(frozen=True)
class ForestTuning:
    """One forest step.

    Attributes:
        rows: the rows that engines were compared and measured on, in words.
        reference: who said what is right: the training library, or where only its trees are there, Treelite.
        default: the engine that answers where another is not at least 5% faster.
        engines: who answers, fewest rows first; the last answers any number.
        milliseconds: batch size -> engine -> the least milliseconds that a call took.
        differences: engine -> how far its answers are from the reference's, relative above 1.
        left_out: engine -> why it was not measured.
    """

    rows: str
    reference: str
    default: str
    engines: tuple[Chosen, ...]
    milliseconds: Mapping[int, Mapping[str, float]]
    differences: Mapping[str, float]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Tuning:
    """What was measured, and where.

    Attributes:
        processor: its name.
        threads: threads that every engine had.
        versions: library -> version of the engines that were measured.
        forests: step -> what was measured.
    """

    processor: str
    threads: int
    versions: Mapping[str, str]
    forests: Mapping[str, ForestTuning]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Tuning:
        """From what `dataclasses.asdict` and JSON made of it; raises KeyError, TypeError or ValueError."""
        forests = {
            step: ForestTuning(
                **{
                    **forest,
                    "engines": tuple(Chosen(**chosen) for chosen in forest["engines"]),
                    "milliseconds": {int(batch): times for batch, times in forest["milliseconds"].items()},
                }
            )
            for step, forest in said["forests"].items()
        }
        return cls(**{**said, "forests": forests})
