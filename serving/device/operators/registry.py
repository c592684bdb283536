"""ONNX operators as torch computes them: one function an operator, found by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["OPERATORS", "SIZES", "Faults", "Node", "Unsupported", "operator", "within"]

Run = Callable[..., Any]


class Unsupported(ValueError):
    """A graph holds what cannot be computed on a device; it is then computed on the host."""


class Faults:
    """What went wrong in rows, gathered on the device, so that nothing has to be waited for until the end."""

    def __init__(self) -> None:
        """Nothing is wrong yet."""
        self._found: list[tuple[str, torch.Tensor]] = []

    def add(self, what: str, wrong: torch.Tensor) -> None:
        """Remember that something is wrong where a tensor of booleans says so."""
        self._found.append((what, wrong.any()))

    def take(self) -> tuple[tuple[str, ...], torch.Tensor | None]:
        """What may be wrong and, on the device, which of it is; forgets it. None: nothing was looked at."""
        found, self._found = self._found, []
        flags = torch.stack([wrong for _, wrong in found]) if found else None
        return tuple(what for what, _ in found), flags


def within(index: torch.Tensor, size: int, what: str, faults: Faults | None) -> torch.Tensor:
    """Indices, those below 0 counted from the end; what is out of range is a fault and becomes any row.

    Args:
        index: int64.
        size: rows that there are.
        what: what a fault is called.
        faults: takes it; None where the indices are no row's.
    """
    kept = index.clamp(-size, size - 1)
    if faults is not None:
        faults.add(what, kept != index)
    return torch.where(kept < 0, kept + size, kept)


@dataclass(frozen=True)
class Node:
    """A node as its operator needs it.

    Attributes:
        name: what messages call it.
        operator: ONNX's name of it, with its domain unless that is ONNX's own.
        says: its attributes.
        reads: names of its inputs, "" for one that is left out.
        makes: names of its outputs.
        opset: of its domain.
        device: where it is computed.
        faults: takes what is wrong in rows.
    """

    name: str
    operator: str
    says: Mapping[str, Any]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    opset: int
    device: torch.device
    faults: Faults


OPERATORS: dict[str, Callable[[Node], Run]] = {}
"""Operator -> what makes of a node the function that computes it: tensors in, a tensor or several out."""

SIZES: dict[str, tuple[int, ...]] = {}
"""Operator -> which of its inputs are sizes, axes or bounds: they are lists of numbers on the host."""


def operator(*names: str, sizes: tuple[int, ...] = ()) -> Callable[[Callable[[Node], Run]], Callable[[Node], Run]]:
    """Register what makes a function of a node, under the names of its operators."""

    def register(make: Callable[[Node], Run]) -> Callable[[Node], Run]:
        for name in names:
            OPERATORS[name] = make
            SIZES[name] = sizes
        return make

    return register
