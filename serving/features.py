"""A table of features that is asked between two graphs of a program, and changes over to another version by itself."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import RepositoryError
from tristage.serving.feature_files import CURRENT, current
from tristage.serving.graph import GraphError, Runnable, Tensor
from tristage.serving.program_file import FeaturesCall

__all__ = ["Features"]


class Features:
    """An opened table; evaluated as a Graph is. Changes over to another version by itself."""

    def __init__(self, tables: Path, call: FeaturesCall, opens: Callable[[Path], Runnable]) -> None:
        """Open the version that is current.

        Args:
            tables: the table's folder.
            call: how its tensors are called.
            opens: opens a version's folder.

        Raises:
            GraphError: it cannot be opened.
        """
        self._tables, self._call, self._opens = tables, call, opens
        self._current = tables / CURRENT
        self._seen = self._mark()
        self._opening: threading.Thread | None = None
        try:
            self._inner = self._checked(current(tables))
        except RepositoryError as error:
            raise GraphError(str(error)) from error

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The ids."""
        (ids,) = self._inner.inputs
        return (Tensor(self._call.reads, ids.triton_type, ids.dtype, ids.width),)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The features."""
        inner = {tensor.name: tensor for tensor in self._inner.outputs}
        return tuple(
            Tensor(outer, inner[name].triton_type, inner[name].dtype, inner[name].width)
            for name, outer in self._call.makes.items()
        )

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer rows, all of them from one version; arguments, answers and errors are those of `Graph.run`."""
        self._look()
        inner = self._inner
        (ids,) = inner.inputs
        made = inner.run({ids.name: tensors[self._call.reads]})
        return {outer: made[name] for name, outer in self._call.makes.items()}

    def _look(self) -> None:
        """Begin to open another version, where there is one that nobody has tried."""
        mark = self._mark()
        if mark in (self._seen, None) or (self._opening is not None and self._opening.is_alive()):
            return
        self._seen = mark
        self._opening = threading.Thread(target=self._change, daemon=True)
        self._opening.start()

    def _change(self) -> None:
        try:
            self._inner = self._checked(current(self._tables))
        except (RepositoryError, GraphError) as error:
            sys.stderr.write(f"step {self._call.step} goes on with the features that it has: {error}\n")
            sys.stderr.flush()

    def _checked(self, version: Path) -> Runnable:
        inner = self._opens(version)
        makes = {tensor.name for tensor in inner.outputs}
        missing = sorted(set(self._call.makes) - makes)
        if missing or len(inner.inputs) != 1:
            raise GraphError(f"{version} holds other features ({', '.join(missing)} is missing); write the table again")
        known = getattr(self, "_inner", None)
        if known is not None and _sides(known, self._call) != _sides(inner, self._call):
            raise GraphError(f"{version} holds ids or features of other types; write the table again")
        return inner

    def _mark(self) -> tuple[int, int] | None:
        """Differs for every exchange of CURRENT; None where it is gone, with the export that it was of."""
        try:
            found = self._current.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


def _sides(inner: Runnable, call: FeaturesCall) -> tuple[Any, ...]:
    """Types of what a table reads and makes, as far as it is asked for."""
    made = {tensor.name: (tensor.dtype, tensor.width) for tensor in inner.outputs}
    (ids,) = inner.inputs
    return np.dtype(ids.dtype), ids.width, tuple(made[name] for name in call.makes)
