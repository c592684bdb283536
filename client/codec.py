"""Rows to tensors and answers back to rows, in whatever the caller keeps rows in.

Rows are a list of dicts, a pandas DataFrame, a pyarrow Table or RecordBatch, or anything that hands itself over as an
Arrow stream, such as a polars DataFrame. Every column is checked against the stack's signature before anything is
sent; a fault is an InputError that names the column and the first row at fault.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tristage.client._values import encode_values
from tristage.columns import Column, Signature
from tristage.errors import InferenceFailed, InputError

__all__ = ["ListTruncated", "Unknown", "as_arrow", "decode", "encode"]

Unknown = Literal["error", "ignore"]


class ListTruncated(UserWarning):
    """Lists were longer than their column declares, and were cut.

    Attributes:
        column: the column's name.
        rows: how many rows were cut.
        limit: the elements that are kept.
    """

    def __init__(self, column: str, rows: int, limit: int) -> None:
        super().__init__(
            f'column "{column}": the lists of {rows} row{"" if rows == 1 else "s"} hold more than {limit} elements and '
            "were cut; send shorter lists, or export the stack with a longer one"
        )
        self.column = column
        self.rows = rows
        self.limit = limit


def encode(
    rows: Any, signature: Signature, *, unknown: Unknown = "error", first_row: int = 0
) -> dict[str, NDArray[Any]]:
    """Rows as the tensors of a request.

    Args:
        rows: a list of dicts, a pandas DataFrame, a pyarrow Table or RecordBatch, or another frame that offers
            `__arrow_c_stream__`.
        signature: the stack's columns.
        unknown: what to do about columns the stack does not have: "error", or "ignore" to leave them out.
        first_row: the number of the first row in messages.

    Returns:
        column name -> array [rows, column.width] of column.numpy_dtype, in the signature's order; strings as str.

    Raises:
        InputError: the rows do not fit.

    Warns:
        ListTruncated: lists were longer than declared, once for each such column.
    """
    tensors, cut = encode_and_count(rows, signature, unknown=unknown, first_row=first_row)
    for column in signature.inputs:
        if column.name in cut and column.length is not None:
            warnings.warn(ListTruncated(column.name, cut[column.name], column.length), stacklevel=2)
    return tensors


def encode_and_count(
    rows: Any, signature: Signature, *, unknown: Unknown = "error", first_row: int = 0
) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """`encode` without warnings, which are the whole process's: also says how many rows' lists were cut, by column."""
    if unknown not in ("error", "ignore"):
        raise InputError(f'unknown must be "error" or "ignore", not {unknown!r}')
    if _is_pandas(rows):
        tensors = _encode_frame(_pandas_columns(rows), rows, signature, unknown, first_row, _from_pandas)
    elif _is_arrow(rows):
        frame = _to_arrow(rows)
        tensors = _encode_frame(list(frame.schema.names), frame, signature, unknown, first_row, _from_arrow)
    else:
        tensors = _encode_dicts(_check_dicts(rows), signature, unknown, first_row)
    names = [column.name for column in signature.inputs]
    return {name: tensors[name][0] for name in names}, {name: tensors[name][1] for name in names if tensors[name][1]}


def decode(outputs: Mapping[str, NDArray[Any]], signature: Signature, like: Any) -> Any:
    """An answer in the shape of what was asked.

    Args:
        outputs: output name -> array [rows, 1] or [rows]; of a list column [rows, length].
        signature: the stack's columns.
        like: the rows that were encoded.

    Returns:
        the outputs only: a list of dicts of Python numbers, a DataFrame with the caller's index, a Table, a
        RecordBatch, or for another Arrow frame one of its own kind. A row of a list column is a list, in a DataFrame
        an array.

    Raises:
        InferenceFailed: an output is missing or not of as many values a row as declared.
    """
    count = len(like) if hasattr(like, "__len__") else max((len(array) for array in outputs.values()), default=0)
    columns = {}
    for column in signature.outputs:
        array = outputs.get(column.name)
        if array is None or array.size != count * column.width:
            found = "nothing" if array is None else f"an array of shape {array.shape}"
            raise InferenceFailed(f'the server answered {found} for the output "{column.name}" of {count} rows')
        columns[column.name] = array.reshape(count if column.length is None else (count, column.length))
    if _is_pandas(like):
        import pandas as pd

        whole = {name: array if array.ndim == 1 else list(array) for name, array in columns.items()}
        return pd.DataFrame(whole, index=like.index)
    if not _is_arrow(like):
        names = list(columns)
        lists = (array.tolist() for array in columns.values())
        return [dict(zip(names, row)) for row in zip(*lists)]  # noqa: B905 - of one length, checked
    import pyarrow as pa

    arrow = {name: as_arrow(array) for name, array in columns.items()}
    if isinstance(like, pa.RecordBatch):
        return pa.RecordBatch.from_pydict(arrow)
    table = pa.table(arrow)
    return table if isinstance(like, pa.Table) or not _is_of("polars", like) else type(like)(table)


def as_arrow(values: NDArray[Any]) -> Any:
    """A column's values, [rows] or of a list [rows, length], as a pyarrow.Array."""
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    rows, length = values.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * length), pa.array(values.ravel()))


# ----------------------------------------------------------------------------------------------------------- dicts


def _check_dicts(rows: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(rows, Mapping):
        raise InputError("rows must be a list of dicts and this is one dict; for one row, send [row]")
    if not isinstance(rows, (list, tuple)):
        raise InputError(
            f"rows must be a list of dicts, a DataFrame or a pyarrow Table, not {type(rows).__name__}; "
            "make a list of what yields rows with list(rows)"
        )
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(
                f"row {number} is a {type(row).__name__} and must be a dict of column name -> value", row=number
            )
    return rows


def _encode_dicts(
    rows: Sequence[Mapping[str, Any]], signature: Signature, unknown: Unknown, first_row: int
) -> dict[str, tuple[NDArray[Any], int]]:
    _check_count(len(rows))
    names = [column.name for column in signature.inputs]
    try:
        columns = [[row[name] for row in rows] for name in names]
        odd = unknown == "error" and sum(map(len, rows)) != len(rows) * len(names)
    except KeyError:
        odd, columns = True, []
    if odd:
        for number, row in enumerate(rows):
            _check_names(list(row), signature, unknown, row=first_row + number)
    return {
        column.name: encode_values(values, column, first_row)
        for column, values in zip(signature.inputs, columns)  # noqa: B905 - one for each
    }


# ---------------------------------------------------------------------------------------------------------- frames


def _encode_frame(
    names: list[str], frame: Any, signature: Signature, unknown: Unknown, first_row: int, read: Any
) -> dict[str, tuple[NDArray[Any], int]]:
    from tristage.client._arrow import encode_arrow

    _check_names(names, signature, unknown)
    _check_count(len(frame) if hasattr(frame, "__len__") else frame.num_rows)
    encoded = {}
    for column in signature.inputs:
        arrow, values = read(frame, names.index(column.name), column)
        fast = None if arrow is None else encode_arrow(arrow, column)
        encoded[column.name] = encode_values(values(), column, first_row) if fast is None else fast
    return encoded


def _from_arrow(frame: Any, at: int, column: Column) -> Any:
    def values() -> list[Any]:
        data = frame.column(at)
        try:
            return list(data.to_pylist())
        except UnicodeDecodeError as error:
            raise InputError(f'column "{column.name}" holds what is not UTF-8 ({error})', column=column.name) from error

    return frame.column(at), values


def _from_pandas(frame: Any, at: int, column: Column) -> Any:
    import pyarrow as pa

    series = frame.iloc[:, at]
    plain = isinstance(series.dtype, np.dtype) and series.dtype.kind in "iufb"
    if series.dtype == object and column.length is None and column.dtype != "string":
        return None, series.tolist  # Arrow would make 1.0 of a True among floats
    try:
        # NaN in a float64 column may be meant as NaN; in an object column it is how pandas writes a null
        arrow = pa.array(series.to_numpy()) if plain else pa.array(series, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        arrow = None  # mixed types: the values say what is wrong
    return arrow, series.tolist


def _pandas_columns(frame: Any) -> list[str]:
    return [str(name) for name in frame.columns]


def _is_pandas(rows: Any) -> bool:
    return hasattr(rows, "iloc") and hasattr(rows, "columns") and _is_of("pandas", rows)


def _is_of(package: str, rows: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == package for kind in type(rows).__mro__)


def _is_arrow(rows: Any) -> bool:
    return hasattr(rows, "__arrow_c_stream__") or (hasattr(rows, "schema") and hasattr(rows, "num_rows"))


def _to_arrow(rows: Any) -> Any:
    import pyarrow as pa

    if isinstance(rows, (pa.Table, pa.RecordBatch)):
        return rows
    try:
        return pa.table(rows)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            f"rows of type {type(rows).__name__} cannot be read as an Arrow table ({error}); convert them to a "
            "pyarrow Table first"
        ) from error


# ---------------------------------------------------------------------------------------------------------- checks


def _check_count(count: int) -> None:
    if count == 0:
        raise InputError("no rows: there is nothing to predict; send at least one")


def _check_names(names: Sequence[str], signature: Signature, unknown: Unknown, row: int | None = None) -> None:
    wanted = [column.name for column in signature.inputs]
    where = "" if row is None else f" in row {row}"
    twice = sorted({name for name in names if name in wanted and names.count(name) > 1}) if row is None else []
    if twice:
        raise InputError(f"{_columns(twice)} there more than once; rename or drop the others", column=twice[0])
    missing = [name for name in wanted if name not in names]
    strange = [str(name) for name in names if name not in wanted]
    if missing:
        raise InputError(
            f"{_columns(missing)} missing{where}; {_likely(missing, strange) or 'the stack needs them all'}",
            column=missing[0],
            row=row,
        )
    if strange and unknown == "error":
        hint = _likely(strange, wanted)
        raise InputError(
            f"{_columns(strange)} unknown to the stack{where}; {hint + ' ' if hint else ''}"
            'leave them out, or let them be ignored (unknown="ignore", --unknown ignore)',
            column=strange[0],
            row=row,
        )


def _columns(names: Sequence[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"column {quoted} is" if len(names) == 1 else f"columns {quoted} are"


def _likely(names: Sequence[str], candidates: Iterable[str]) -> str:
    """Which of the candidates may be meant, "" where none looks alike."""
    pool = list(candidates)
    pairs = [(name, get_close_matches(name, pool, n=1)) for name in names]
    found = ", ".join(f'"{close[0]}" for "{name}"' for name, close in pairs if close)
    return f"did you mean {found}?" if found else ""
