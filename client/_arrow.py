"""One column from Arrow, without looking at its cells in Python: the fast way for frames.

Where a column does not plainly fit, the answer is None and `_values` looks at it, decides, and words the error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tristage.client._values import integer_range, pad_lists, to_float
from tristage.columns import NULL_STRING, Column

__all__ = ["encode_arrow"]


def encode_arrow(data: Any, column: Column) -> tuple[NDArray[Any], int] | None:
    """One column as it travels.

    Args:
        data: a pyarrow Array or ChunkedArray.
        column: the column.

    Returns:
        the array [rows, column.width] of column.numpy_dtype, and the number of rows whose list was cut; None where
        the column does not plainly fit.
    """
    if isinstance(data, pa.ChunkedArray):
        data = data.combine_chunks()
    if not isinstance(data, pa.Array):  # more strings than one Arrow array holds
        return None
    try:
        if column.length is not None:
            return _lists(data, column, column.length)
        flat = _scalars(data, column, nullable=column.nullable)
    except (pa.ArrowException, UnicodeDecodeError):  # a cast that has no meaning, bytes that are not UTF-8
        return None
    return None if flat is None else (flat.reshape(-1, 1), 0)


def _lists(data: Any, column: Column, length: int) -> tuple[NDArray[Any], int] | None:
    kind = data.type
    if pa.types.is_fixed_size_list(kind):
        data = data.cast(pa.list_(kind.value_type))
    elif not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None
    if data.null_count and not column.nullable:
        return None
    lengths = pc.fill_null(pc.list_value_length(data), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    cut = int(np.count_nonzero(lengths > length))
    if cut:
        data = pc.list_slice(data, 0, length)
        lengths = np.minimum(lengths, length)
    flat = _scalars(data.flatten(), column, nullable=False)
    return None if flat is None else (pad_lists(flat, lengths, column, length), cut)


def _scalars(data: Any, column: Column, *, nullable: bool) -> NDArray[Any] | None:
    if pa.types.is_dictionary(data.type):
        data = data.dictionary_decode()
    if data.null_count and not nullable:
        return None
    if pa.types.is_null(data.type):
        return np.full(len(data), NULL_STRING if column.dtype == "string" else np.nan, dtype=column.numpy_dtype)
    if column.dtype == "string":
        return _strings(data)
    is_bool = pa.types.is_boolean(data.type)
    if is_bool and column.dtype == "bool":
        data = data.cast(pa.uint8())
    elif is_bool or not (pa.types.is_integer(data.type) or pa.types.is_floating(data.type)):
        return None
    if column.dtype in ("float32", "float64"):
        return to_float(data.to_numpy(zero_copy_only=False), column)
    return _integers(data, column, nullable)


def _strings(data: Any) -> NDArray[Any] | None:
    if pa.types.is_integer(data.type) or pa.types.is_floating(data.type) or not _is_text(data.type):
        return None
    data = data.cast(pa.large_string())  # checks the UTF-8 of bytes
    if pc.any(pc.equal(data, pa.scalar(NULL_STRING, pa.large_string()))).as_py():
        return None
    array: NDArray[Any] = pc.fill_null(data, pa.scalar(NULL_STRING, pa.large_string())).to_numpy(zero_copy_only=False)
    return array


def _is_text(kind: Any) -> bool:
    # string and binary, each also large and as a view, which older pyarrows have no test for
    return str(kind) in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def _integers(data: Any, column: Column, nullable: bool) -> NDArray[Any] | None:
    low, high = integer_range(column.dtype)
    if pa.types.is_integer(data.type):
        limits = pc.min_max(data).as_py()
        if limits["min"] is not None and not (low <= limits["min"] and limits["max"] <= high):
            return None
        whole: NDArray[Any] = data.to_numpy(zero_copy_only=False)
        return whole.astype(column.numpy_dtype, copy=False)
    array: NDArray[Any] = data.to_numpy(zero_copy_only=False)
    nulls = np.isnan(array)
    if nulls.any() and not nullable:
        return None
    # high + 1 is a power of two, which a float holds exactly where it does not hold high itself
    fits = (array == np.floor(array)) & (array >= float(low)) & (array < float(high + 1))
    if not bool(np.all(fits | nulls)):
        return None
    return array.astype(column.numpy_dtype, copy=False)
