"""Golden rows: held-out raw rows, what the training libraries answer for them, and how both are distributed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.client.golden import EXPECTED
from tristage.columns import Column, Signature
from tristage.distribution import describe
from tristage.errors import ArtifactError, InputError
from tristage.manifest import GOLDEN, REFERENCE

__all__ = [
    "MAX_GOLDEN_ROWS",
    "check_golden",
    "golden_columns",
    "read_golden_rows",
    "write_golden",
    "write_reference",
]

MAX_GOLDEN_ROWS = 4096


def read_golden_rows(path: Path) -> Any:
    """Read golden rows, at most MAX_GOLDEN_ROWS, as a pyarrow.Table.

    Raises:
        ArtifactError: the file is missing, not Parquet, or holds no rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ArtifactError(
            f"there is no file {path} of golden rows; write held-out raw rows there as Parquet", path=path
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"golden rows {path} cannot be read as Parquet ({error})", path=path) from error
    if table.num_rows == 0:
        raise ArtifactError(f"golden rows {path} hold no rows; put a few hundred held-out rows in it", path=path)
    return table.slice(0, MAX_GOLDEN_ROWS).replace_schema_metadata(None)


def golden_columns(table: Any) -> dict[str, Column]:
    """The columns of golden rows: types, list columns (as long as their longest list), and which hold nulls.

    Text and floats may always be null. A column of a type that Triton lacks is left out.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {}
    for field in table.schema:
        values = table[field.name]
        is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        dtype = _dtype(field.type.value_type if is_list else field.type)
        if dtype is None:
            continue
        if is_list:
            longest = pc.max(pc.list_value_length(values)).as_py() or 1
            pad = "" if dtype == "string" else float("nan") if dtype.startswith("float") else 0
            columns[field.name] = Column(field.name, dtype, max(longest, 1), pad)
        else:
            nullable = dtype in ("string", "float32", "float64") or values.null_count > 0
            columns[field.name] = Column(field.name, dtype, nullable=nullable)
    return columns


def _dtype(kind: Any) -> str | None:
    import pyarrow as pa

    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return str(kind)
    return {"float": "float32", "double": "float64"}.get(str(kind))


def check_golden(table: Any, signature: Signature) -> None:
    """Check that golden rows have every column of the signature.

    Raises:
        InputError: names the columns that are missing.
    """
    missing = [column.name for column in signature.inputs if column.name not in table.column_names]
    if missing:
        raise InputError(
            f"golden rows lack {', '.join(missing)}, which the stack reads; write them with all raw columns",
            column=missing[0],
        )


def write_golden(repository: Path, table: Any, signature: Signature, expected: Mapping[str, NDArray[Any]]) -> None:
    """Write `golden.parquet`: the signature's input columns, then `expected.<output>` for every output."""
    import pyarrow.parquet as pq

    from tristage.client.codec import as_arrow

    golden = table.select([column.name for column in signature.inputs])
    for name, values in expected.items():
        golden = golden.append_column(EXPECTED + name, as_arrow(np.asarray(values)))
    pq.write_table(golden, repository / GOLDEN, compression="zstd")


def write_reference(
    repository: Path, rows: Mapping[str, NDArray[Any]], signature: Signature, expected: Mapping[str, NDArray[Any]]
) -> None:
    """Write `reference.json`: the distribution of every column that goes in and comes out, for who watches for drift.

    Args:
        repository: the folder.
        rows: the golden rows' tensors, as a request holds them.
        signature: the stack's columns.
        expected: output -> what the training libraries answered, [rows] or [rows, length].
    """
    found = {column.name: describe(column, np.asarray(rows[column.name])) for column in signature.inputs}
    found |= {column.name: describe(column, np.asarray(expected[column.name])) for column in signature.outputs}
    document = {"rows": len(next(iter(expected.values()))), "columns": {n: asdict(d) for n, d in found.items()}}
    (repository / REFERENCE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
