"""Opens a packed program of columns and answers rows, in C."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tristage.serving.packed_file import map_file, map_packed

try:
    from tristage.serving.columns import _columns
except ImportError:  # installed where there was no C compiler
    _columns = None  # type: ignore[assignment]

__all__ = ["ColumnsEngine", "ColumnsError", "available", "operations"]


class ColumnsError(ValueError):
    """A packed program cannot be opened, or arrays do not fit it."""


def available() -> bool:
    """Whether the engine was built when tristage was installed."""
    return _columns is not None


def operations() -> tuple[str, ...]:
    """The names of the engine's operations, by number; none where it was not built."""
    return () if _columns is None else _columns.operations()


class ColumnsEngine:
    """A packed program and its tables, memory-mapped: instances share their pages. May be used from several threads.

    The files must stay as they are while they are open; writers put new files in their place.
    """

    def __init__(self, path: Path, tables: Sequence[Path]) -> None:
        """Open a file that `tristage.export.columns` wrote.

        Args:
            path: the file.
            tables: the files of the large tables that it reads, in its order.

        Raises:
            ColumnsError: the engine is not installed, or a file is missing, cut short or changed.
        """
        if _columns is None:
            raise ColumnsError(
                "tristage was installed without its columns engine; install it where there is a C compiler"
            )
        try:
            packed, mapped = map_packed(path, "packed program"), tuple(map(map_file, tables))
        except ValueError as error:
            raise ColumnsError(str(error)) from error
        try:
            self._columns = _columns.Columns(packed, mapped)
        except ValueError as error:
            raise ColumnsError(f"{path} cannot be opened: {error}; export it again") from error

    def run(self, rows: int, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None:
        """Answer rows.

        Args:
            rows: how many.
            inputs: in the program's order, each of so many rows.
            outputs: what is filled, in the program's order.

        Raises:
            ColumnsError: an array has another shape or width of type, or a table lacks a row that is asked for.
        """
        try:
            self._columns.run(rows, (*inputs, *outputs))
        except (ValueError, BufferError, IndexError) as error:
            raise ColumnsError(str(error)) from error
