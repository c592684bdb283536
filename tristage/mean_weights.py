"""The weights of a mean step, given or read from the JSON file that a search for them wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tristage.errors import StackError

__all__ = ["is_number", "read_weights"]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_weights(weights: Mapping[str, float] | Path | str, names: Sequence[str]) -> dict[str, float]:
    """A weight for every name, in the names' order.

    Args:
        weights: name -> weight, or a JSON file of such an object.
        names: what weights are needed for.

    Raises:
        StackError: the file cannot be read, a name has no weight or a weight no name, one is no number, or their
            sum is 0.
    """
    where = "weights"
    if not isinstance(weights, Mapping):
        where = f"weights, {weights},"
        try:
            weights = json.loads(Path(weights).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StackError(f"{where} cannot be read: {error}") from error
        if not isinstance(weights, dict):
            raise StackError(f"{where} hold no object; write one of step: weight, such as {{'{names[0]}': 0.5}}")
    if missing := [name for name in names if name not in weights]:
        raise StackError(f"{where} have none for {missing[0]}; give 0 to leave it out")
    if strange := [name for name in weights if name not in names]:
        raise StackError(f"{where} have one for {strange[0]}, which is not averaged; those are {', '.join(names)}")
    if odd := [name for name in names if not is_number(weights[name])]:
        raise StackError(f"{where} have {weights[odd[0]]!r} for {odd[0]}; give a number")
    total = math.fsum(weights.values())
    if abs(total) <= 1e-12 * math.fsum(map(abs, weights.values())):
        raise StackError(f"{where} sum to {total:g}; a weighted mean divides by their sum")
    return {name: float(weights[name]) for name in names}
