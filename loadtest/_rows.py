"""The rows that are sent: real ones, encoded before the clock starts, a different slice in every request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import InputError
from tristage.manifest import GOLDEN

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Tensors", "requests_of", "rows_from"]

Tensors = Mapping[str, NDArray[Any]]

# as many different requests as a batch size gets, at most and (with rows to spare) at least
_MOST, _LEAST = 4096, 16


def rows_from(path: Path) -> pa.Table:
    """Rows from a Parquet file, or the golden rows of a model repository; expected answers are left out.

    Raises:
        InputError: nothing is there, no golden rows are in the repository, or the file is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tristage.client.golden import EXPECTED

    file = path / GOLDEN if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"no rows to send: {file} does not exist; give --rows a Parquet file of raw rows, or a model repository "
            f"that has a {GOLDEN}"
        )
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{file} cannot be read as Parquet ({error}); give --rows a Parquet file of raw rows"
        ) from error
    return table.select([name for name in table.column_names if not name.startswith(EXPECTED)])


def requests_of(tensors: Tensors, batch: int) -> list[dict[str, NDArray[Any]]]:
    """Cut rows into requests of `batch` rows that begin at different rows, spread evenly over all of them.

    Where there are fewer rows than `batch`, rows repeat within a request. Requests are views of the tensors, except
    those that run over the end.

    Args:
        tensors: column name -> array of shape [rows, width], with at least one row.
        batch: rows a request.
    """
    rows = len(next(iter(tensors.values())))
    count = min(rows, _MOST, max(_LEAST, -(-rows // batch)))
    starts = [index * rows // count for index in range(count)]
    return [{name: _slice(values, start, batch) for name, values in tensors.items()} for start in starts]


def _slice(values: NDArray[Any], start: int, batch: int) -> NDArray[Any]:
    if start + batch <= len(values):
        return values[start : start + batch]
    return values.take(np.arange(start, start + batch), axis=0, mode="wrap")
