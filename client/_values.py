"""One column from Python's values, as a list of dicts gives them: the checks that decide, and the words for each fault.

A whole column is tried at once; only where something does not fit are its values looked at one by one, to name the
first that does not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import NULL_STRING, Column
from tristage.errors import InputError

__all__ = ["encode_values", "integer_range", "pad_lists", "to_float"]

_PLAIN = frozenset({bool, int, float, str, type(None)})
_FLOATS = ("float32", "float64")


class _Misfit(Exception):
    """Some value of a column does not fit it; never leaves this module."""


def encode_values(values: Sequence[Any], column: Column, first_row: int = 0) -> tuple[NDArray[Any], int]:
    """One column as it travels.

    Args:
        values: one Python value a row: numbers, strings, None, or lists of them.
        column: the column.
        first_row: the number of the first row in messages.

    Returns:
        the array [rows, column.width] of column.numpy_dtype, and the number of rows whose list was cut.

    Raises:
        InputError: a value does not fit; names the column and the first such row.
    """
    if column.length is not None:
        return _lists(values, column, column.length, first_row)
    try:
        return _scalars(values, column, nullable=column.nullable).reshape(-1, 1), 0
    except _Misfit as misfit:
        raise _first_fault(values, column, range(first_row, first_row + len(values)), inside=False) from misfit


def pad_lists(flat: NDArray[Any], lengths: NDArray[Any], column: Column, length: int) -> NDArray[Any]:
    """Lists that lie end to end as a rectangle [rows, length], the rest of each row filled with the pad."""
    pad = column.pad
    if pad is None:
        pad = "" if column.dtype == "string" else math.nan if column.dtype in _FLOATS else 0
    whole = np.full((len(lengths), length), pad, dtype=column.numpy_dtype)
    whole[np.arange(length) < lengths[:, None]] = flat
    return whole


@functools.cache
def integer_range(dtype: str) -> tuple[int, int]:
    """The smallest and the largest value of an integer dtype; (0, 1) of "bool"."""
    if dtype == "bool":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def to_float(values: NDArray[Any], column: Column) -> NDArray[Any] | None:
    """Numbers in a float column's dtype; None where one is too large for it."""
    if column.dtype != "float32":
        return values.astype(column.numpy_dtype, copy=False)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32, copy=False)
    return None if bool(np.any(np.isinf(narrow) & ~np.isinf(values))) else narrow


def _lists(values: Sequence[Any], column: Column, length: int, first_row: int) -> tuple[NDArray[Any], int]:
    for row, value in enumerate(values):
        if not _is_list(value) and not (column.nullable and _is_null(_plain(value))):
            raise _error(column, first_row + row, _list_fault(value))
    # a null list, where one is allowed, is an empty one
    lists = [value.tolist() if isinstance(value, np.ndarray) else [] if _missing(value) else value for value in values]
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    cut = int(np.count_nonzero(lengths > length))
    if cut:
        lists = [value[:length] for value in lists]
        lengths = np.minimum(lengths, length)
    flat = list(chain.from_iterable(lists))
    try:
        return pad_lists(_scalars(flat, column, nullable=False), lengths, column, length), cut
    except _Misfit as misfit:
        raise _first_fault(flat, column, np.repeat(np.arange(len(lists)) + first_row, lengths), inside=True) from misfit


def _missing(value: Any) -> bool:
    return not isinstance(value, (list, tuple))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _scalars(values: Sequence[Any], column: Column, *, nullable: bool) -> NDArray[Any]:
    kinds: AbstractSet[type] = set(map(type, values))
    if not kinds <= _PLAIN:
        values = [_plain(value) for value in values]
        kinds = set(map(type, values))
    if column.dtype == "string":
        return _strings(values, kinds, nullable)
    if column.dtype in _FLOATS:
        return _floats(values, kinds, column, nullable)
    return _integers(values, kinds, column, nullable)


def _strings(values: Sequence[Any], kinds: AbstractSet[type], nullable: bool) -> NDArray[Any]:
    if not kinds <= {str, float, type(None)} or NULL_STRING in values:
        raise _Misfit
    if not kinds <= {str}:
        values = [NULL_STRING if nullable and _is_null(value) else value for value in values]
    try:
        "".join(values).encode()
    except (TypeError, UnicodeEncodeError):
        raise _Misfit from None
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _floats(values: Sequence[Any], kinds: AbstractSet[type], column: Column, nullable: bool) -> NDArray[Any]:
    if type(None) in kinds and nullable:
        values, kinds = [math.nan if value is None else value for value in values], kinds - {type(None)}
    if not kinds <= {int, float}:
        raise _Misfit
    try:
        array = to_float(np.array(values, dtype=np.float64), column)
    except OverflowError:  # an int beyond what a float64 holds
        raise _Misfit from None
    if array is None:
        raise _Misfit
    return array


def _integers(values: Sequence[Any], kinds: AbstractSet[type], column: Column, nullable: bool) -> NDArray[Any]:
    if not kinds <= {int, float, type(None)} | ({bool} if column.dtype == "bool" else set()):
        raise _Misfit
    if not kinds <= {int, bool}:
        values = [_whole(value) for value in values]
    present = values if kinds <= {int, bool} else [value for value in values if value is not None]
    low, high = integer_range(column.dtype)
    if (len(present) < len(values) and not nullable) or (
        present and not (low <= min(present) and max(present) <= high)
    ):
        raise _Misfit
    if len(present) < len(values):
        values = [math.nan if value is None else value for value in values]
    return np.array(values, dtype=column.numpy_dtype)


def _whole(value: float | None) -> int | None:
    """A number as an int, a null or NaN as None."""
    if value is None or value != value:
        return None
    if isinstance(value, int):
        return value
    if value != math.floor(value) if math.isfinite(value) else True:
        raise _Misfit
    return int(value)


def _plain(value: Any) -> Any:
    """numpy's, Arrow's and pandas' scalars, bytes and subclasses as one of Python's own types, where they are one."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic):
        value = value.item()
    elif hasattr(value, "as_py"):
        value = value.as_py()
    elif type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    for plain in (str, int, float):
        if isinstance(value, plain) and not isinstance(value, bool):
            return plain(value)
    return value


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _first_fault(
    values: Sequence[Any], column: Column, rows: Sequence[int] | NDArray[Any], *, inside: bool
) -> InputError:
    nullable = column.nullable and not inside
    for row, value in zip(rows, values):  # noqa: B905 - of one length
        fault = _fault(value, column, nullable=nullable, inside=inside)
        if fault is not None:
            return _error(column, int(row), fault)
    return InputError(f'column "{column.name}" does not fit {_wanted(column)}', column=column.name)


def _error(column: Column, row: int, fault: str) -> InputError:
    return InputError(f'column "{column.name}", row {row}: {fault}', column=column.name, row=row)


def _fault(raw: Any, column: Column, *, nullable: bool, inside: bool) -> str | None:
    """What is wrong with one value, and what to do; None where nothing is."""
    value = _plain(raw)
    if isinstance(value, (list, tuple, np.ndarray, Mapping, AbstractSet)):
        if inside:
            return f"a list inside a list, {_show(value)}; send one flat list of {column.dtype}"
        return f"expected one {column.dtype}, got {_show(value)}; send one value a row"
    if value is None or (_is_null(value) and column.dtype not in _FLOATS):
        if nullable:
            return None
        where = "a null inside a list" if inside else "a null, and the column is not nullable"
        return f"{where}; {'leave it out or ' if inside else ''}send a {column.dtype}"
    if column.dtype == "string":
        return _string_fault(value)
    if isinstance(value, bool) and column.dtype == "bool":
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return f"expected {_wanted(column)}, got {_show(value)}; convert it to a number first"
    return _number_fault(value, column)


def _string_fault(value: Any) -> str | None:
    if isinstance(value, bytes):
        return f"{_show(value)} is not UTF-8; decode it first"
    if not isinstance(value, str):
        return f"expected a string, got {_show(value)}; convert it with str() first"
    if value == NULL_STRING:
        return f"the string {value!r} stands for a null on the wire and cannot be sent; send None for a null"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{_show(value)} is not valid Unicode; decode it without surrogateescape"
    return None


def _number_fault(value: float, column: Column) -> str | None:
    if column.dtype in _FLOATS:
        limit = float(np.finfo(column.dtype).max)
        finite = isinstance(value, int) or math.isfinite(value)  # an int may be too large to ask
        return f"{_show(value)} is too large for a {column.dtype}" if finite and abs(value) > limit else None
    low, high = integer_range(column.dtype)
    if isinstance(value, float) and (not math.isfinite(value) or value != math.floor(value)):
        return f"expected {_wanted(column)}, got {_show(value)}; round it first"
    if not low <= value <= high:
        return f"{_show(value)} is out of range; a {column.dtype} is between {low} and {high}"
    return None


def _list_fault(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"expected a flat list, got an array of shape {value.shape}; send one dimension"
    if _is_null(_plain(value)):
        return "a null, and the column is not nullable; send an empty list"
    return f"expected a list, got {_show(value)}; put it in a list"


def _wanted(column: Column) -> str:
    kind = "a number" if column.dtype in _FLOATS else "true or false" if column.dtype == "bool" else "a whole number"
    return f"{kind} ({column.dtype})"


def _show(value: Any) -> str:
    kinds = {str: "the string", bool: "the boolean", bytes: "the bytes", list: "the list", dict: "the dict"}
    text = repr(value)
    kind = kinds.get(type(value), "" if isinstance(value, (int, float)) else f"the {type(value).__name__}")
    return f"{kind} {text if len(text) <= 60 else text[:57] + '...'}".strip()
