"""A row to show and to try: a golden one, or one made from the columns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tristage.columns import Column, Signature
from tristage.manifest import GOLDEN

__all__ = ["example_row"]


def example_row(signature: Signature, repository: Path | None) -> dict[str, Any]:
    """A row that JSON can say and the stack takes.

    Args:
        signature: the stack's columns.
        repository: where golden rows may lie; None where none are known.
    """
    for row in [] if repository is None else _golden_rows(repository / GOLDEN, signature):
        plain = {column.name: _plain(row[column.name], column) for column in signature.inputs}
        if all(_sayable(value) for value in plain.values()):
            return plain
    return {column.name: _made_up(column) for column in signature.inputs}


def _golden_rows(path: Path, signature: Signature) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = [column.name for column in signature.inputs]
            return list(next(file.iter_batches(batch_size=64, columns=names)).to_pylist())
    except (OSError, StopIteration, pa.ArrowException):
        return []


def _plain(value: Any, column: Column) -> Any:
    if isinstance(value, list):
        return value[: column.length]
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return None if missing and column.nullable else value


def _sayable(value: Any) -> bool:
    if isinstance(value, list):
        return all(_sayable(item) for item in value)
    return not isinstance(value, (bytes, float)) or (isinstance(value, float) and math.isfinite(value))


def _made_up(column: Column) -> Any:
    value: Any = "text" if column.dtype == "string" else 1.0 if column.dtype.startswith("float") else 1
    value = True if column.dtype == "bool" else value
    return value if column.length is None else [value] * min(column.length, 3)
