"""Opens a packed GRU or LSTM layer and answers rows, in C."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.serving.packed_file import map_packed

try:
    from tristage.serving.recurrence._layer import Layer
except ImportError:  # installed where there was no C compiler
    Layer = None  # type: ignore[assignment, misc]

__all__ = ["MAKES", "RecurrenceEngine", "RecurrenceError", "available"]

MAKES = ("every", "last", "cells")


class RecurrenceError(ValueError):
    """A packed layer cannot be opened, or inputs do not fit it."""


def available() -> bool:
    """Whether the engine was built when tristage was installed."""
    return Layer is not None


class RecurrenceEngine:
    """A packed layer, memory-mapped: instances share its pages. May be used from several threads.

    The file must stay as it is while it is open; writers put a new file in its place.

    Attributes:
        width: numbers in a state.
        rows: of the table of projected inputs that ids look up; 0 where projected inputs are given.
    """

    def __init__(self, path: Path) -> None:
        """Open a file that `tristage.export.rewrites.pack` wrote.

        Raises:
            RecurrenceError: the engine is not installed, or the file is missing, cut short or changed.
        """
        if Layer is None:
            raise RecurrenceError(
                "tristage was installed without its recurrence engine; install it where there is a C compiler"
            )
        try:
            packed = map_packed(path, "packed layer")
        except ValueError as error:
            raise RecurrenceError(str(error)) from error
        try:
            self._layer = Layer(packed)
        except ValueError as error:
            raise RecurrenceError(f"{path} cannot be opened: {error}; export it again") from error
        self.width: int = self._layer.width
        self.rows: int = self._layer.rows

    def run(
        self, inputs: NDArray[Any], mask: NDArray[np.bool_] | None = None, makes: Collection[str] = MAKES
    ) -> dict[str, NDArray[np.float32]]:
        """Answer rows, from states of zeros.

        Args:
            inputs: ids, [rows, steps] int64, where the layer has a table; else projected inputs, [rows, steps, gates *
                width] float32. Others are converted.
            mask: [rows, steps], false where a step is passed over; None passes over none.
            makes: what to answer, of MAKES.

        Returns:
            "every": the states that show, [rows, steps, width]; "last": the states at the end, [rows, width]; "cells":
            an LSTM's cell states at the end, [rows, width].

        Raises:
            RecurrenceError: shapes or dtypes do not fit, or an id is not in the table.
        """
        inputs = np.ascontiguousarray(inputs, np.int64 if self.rows else np.float32)
        if mask is not None:
            mask = np.ascontiguousarray(mask, np.bool_)
        rows, steps = inputs.shape[:2]
        shapes = {"every": (rows, steps, self.width), "last": (rows, self.width), "cells": (rows, self.width)}
        made = {name: np.empty(shapes[name], np.float32) for name in makes}
        try:
            self._layer.run(inputs, mask, *(made.get(name) for name in MAKES))
        except (ValueError, BufferError, IndexError) as error:
            raise RecurrenceError(str(error)) from error
        return made
