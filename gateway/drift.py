"""Drift: how far the rows of late are from the golden rows that the stack was exported with, column by column."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.client._wire import Tensors
from tristage.client.codec import encode_and_count
from tristage.columns import Signature
from tristage.distribution import Distribution, count, psi
from tristage.manifest import REFERENCE

__all__ = ["Drift", "read_reference"]

_EVERY = 1.0  # seconds between two countings
_MOST = 20_000  # rows that are kept until they are counted; of more, the first
_HALF = 10_000  # rows after which a row counts for half
_ENOUGH = 200  # rows before anything is said: of few, chance alone makes shares differ


def read_reference(repository: Path | None) -> dict[str, Distribution]:
    """How the golden rows of a repository are distributed; empty where it has none, or none that can be read."""
    if repository is None:
        return {}
    try:
        document = json.loads((repository / REFERENCE).read_text(encoding="utf-8"))
        return {str(name): Distribution.of(raw) for name, raw in document["columns"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


@dataclass(frozen=True)
class _Taken:
    """What was observed for a while, of one export."""

    signature: Signature
    reference: Mapping[str, Distribution]
    pairs: list[tuple[Tensors, Tensors]]
    single: list[tuple[Mapping[str, Any], Mapping[str, Any]]]
    rows: int

    def count(self) -> dict[str, NDArray[np.int64]]:
        """How many values of each column lie in each of its bins."""
        pairs = [*self.pairs, self._joined()] if self.single else self.pairs
        return {
            column.name: count(
                self.reference[column.name],
                column,
                np.concatenate([pair[side][column.name].reshape(-1, column.width) for pair in pairs]),
            )
            for side, columns in enumerate((self.signature.inputs, self.signature.outputs))
            for column in columns
            if column.name in self.reference
        }

    def _joined(self) -> tuple[Tensors, Tensors]:
        tensors, _ = encode_and_count([row for row, _ in self.single], self.signature)
        answers = {
            column.name: np.array([answer[column.name] for _, answer in self.single])
            for column in self.signature.outputs
        }
        return tensors, answers


class Drift:
    """Streaming histograms of every column that goes in and comes out. `watch` has to run beside."""

    def __init__(self) -> None:
        self._reference: Mapping[str, Distribution] = {}
        self._signature: Signature | None = None
        self._counts: dict[str, NDArray[np.float64]] = {}
        self._waiting: list[tuple[Tensors, Tensors]] = []
        self._single: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
        self._kept = 0
        self.rows = 0

    def follow(self, signature: Signature, reference: Mapping[str, Distribution]) -> None:
        """Start again where this is another export's reference than before."""
        if reference is self._reference and signature is self._signature:
            return
        self._signature, self._reference = signature, reference
        self._counts = {name: np.zeros(len(each.shares)) for name, each in reference.items()}
        self._waiting, self._single, self._kept, self.rows = [], [], 0, 0

    def observe(self, tensors: Tensors, answers: Tensors) -> None:
        """Take note of a request's rows and of what was answered; they are counted later, beside the requests."""
        rows = len(next(iter(tensors.values()), ()))
        if self._reference and self._kept + rows <= _MOST:
            self._waiting.append((tensors, answers))
            self._kept += rows

    def observe_row(self, row: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """`observe` of one row as JSON had it, which fits the stack; what comes row by row is encoded together."""
        if self._reference and self._kept < _MOST:
            self._single.append((row, answer))
            self._kept += 1

    async def watch(self) -> None:
        """Count what was observed, for ever."""
        while True:
            await asyncio.sleep(_EVERY)
            if self._kept:
                taken = self._take()
                self._add(await asyncio.to_thread(taken.count), taken.rows)

    def settle(self) -> None:
        """Count what was observed since the last time, now."""
        if self._kept:
            taken = self._take()
            self._add(taken.count(), taken.rows)

    def _take(self) -> _Taken:
        assert self._signature is not None
        taken = _Taken(self._signature, self._reference, self._waiting, self._single, self._kept)
        self._waiting, self._single, self._kept = [], [], 0
        return taken

    def _add(self, counts: Mapping[str, NDArray[np.int64]], rows: int) -> None:
        fade = 0.5 ** (rows / _HALF)
        for name, found in counts.items():
            if len(self._counts.get(name, ())) == len(found):  # else another export came meanwhile
                self._counts[name] = self._counts[name] * fade + found
        self.rows += rows

    def psi(self) -> dict[str, float]:
        """Each column's population stability index; none of any until enough rows came."""
        if self.rows < _ENOUGH:
            return {}
        return {name: psi(each, self._counts[name]) for name, each in self._reference.items()}

    def now(self) -> dict[str, Any]:
        """What the page shows: rows counted, and the columns, the furthest first."""
        signature = self._signature
        sides = {} if signature is None else {column.name: "output" for column in signature.outputs}
        columns = [
            {"column": name, "side": sides.get(name, "input"), "psi": value}
            for name, value in sorted(self.psi().items(), key=lambda item: -item[1])
        ]
        return {"rows": self.rows, "enough": _ENOUGH, "known": bool(self._reference), "columns": columns}
