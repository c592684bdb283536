"""The rows that are sent: real ones, encoded before the clock starts, a different slice in every request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import InputError
from tristage.loadtest._process import find_server
from tristage.loadtest._wire import Tensors
from tristage.manifest import GOLDEN

if TYPE_CHECKING:
    import pyarrow as pa

    from tristage.client._wire import Protocol

__all__ = ["find_rows", "requests_of", "rows_from"]

# as many different requests as a batch size gets, at most and (with rows to spare) at least
_MOST, _LEAST = 4096, 16
_DRAWN = 1 << 16  # rows drawn for a batch size, about


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


def find_rows(url: str, protocol: Protocol | None, timeout: float) -> Path:
    """Where rows are, where nobody said so: the repository of the server on this machine, or ./model_repository.

    Raises:
        InputError: the URL cannot be read.
        ServerUnavailable: no rows are there, and no server either, which is the trouble to hear of first.
    """
    from tristage.client import connect
    from tristage.client._wire import parse_url

    address = parse_url(url, protocol)
    for folder in (find_server(address).repository(), Path("model_repository")):
        if folder is not None and (folder / GOLDEN).is_file():
            return folder
    transport = connect(address.url)
    try:
        transport.ready("", timeout)
    finally:
        transport.close()
    return Path("model_repository")


def requests_of(
    tensors: Tensors, batch: int, *, exponent: float | None = None, seed: int = 0
) -> list[dict[str, NDArray[Any]]]:
    """Requests of `batch` rows each, made of real rows only.

    In turn: slices that begin at different rows, spread evenly over all of them; where there are fewer rows than
    `batch`, rows repeat within a request. Requests are views of the tensors, except those that run over the end.

    By a power law: each row of each request is drawn by itself, the k-th most popular row in proportion to
    k ** -exponent; which rows are popular is drawn as well. So some rows come back in nearly every request and most
    hardly ever, as live traffic has it, and no request is like another.

    Args:
        tensors: column name -> array of shape [rows, width], with at least one row.
        batch: rows a request.
        exponent: of the power law, above 0; None: in turn.
        seed: of the power law's draws.
    """
    rows = len(next(iter(tensors.values())))
    if exponent is not None:
        random = np.random.default_rng(seed)
        popularity = np.arange(1, rows + 1, dtype=np.float64) ** -exponent
        ranked = random.permutation(rows)
        count = min(_MOST, max(_LEAST, _DRAWN // batch))
        drawn = ranked[random.choice(rows, size=(count, batch), p=popularity / popularity.sum())]
        return [{name: values[rows] for name, values in tensors.items()} for rows in drawn]
    count = min(rows, _MOST, max(_LEAST, -(-rows // batch)))
    starts = [index * rows // count for index in range(count)]
    return [{name: _slice(values, start, batch) for name, values in tensors.items()} for start in starts]


def _slice(values: NDArray[Any], start: int, batch: int) -> NDArray[Any]:
    if start + batch <= len(values):
        return values[start : start + batch]
    return values.take(np.arange(start, start + batch), axis=0, mode="wrap")
