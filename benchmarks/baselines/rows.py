"""The rows that every way is asked about: the same ones, drawn as the load tester draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tristage.client.golden import EXPECTED
from tristage.loadtest._rows import requests_of
from tristage.manifest import GOLDEN

__all__ = ["EXPONENT", "difference", "draws", "golden", "test_rows"]

EXPONENT = 1.0  # of the power law: some rows, and so their users, come back all the time, and most hardly ever
MOST = 65_536  # rows that are drawn from
OFF = 0.005  # part of the golden rows that may lie on a split's edge, as at export


def test_rows(artifacts: Path) -> Any:
    """The test rows that training left, a pyarrow.Table; evenly thinned out where there are very many."""
    table = pq.read_table(artifacts / "test_rows.parquet").replace_schema_metadata(None)
    return table if len(table) <= MOST else table.take(np.linspace(0, len(table) - 1, MOST).astype(np.int64))


def draws(rows: int, batch: int, turn: int) -> list[NDArray[np.int64]]:
    """Which rows each request holds: those that `run_loadtest(power_law=EXPONENT, seed=turn)` sends."""
    numbers = np.arange(rows).reshape(-1, 1)
    return [request["row"][:, 0] for request in requests_of({"row": numbers}, batch, exponent=EXPONENT, seed=turn)]


def golden(repository: Path, outputs: list[str]) -> tuple[Any, NDArray[np.float32]]:
    """A repository's golden rows without their answers, and what the training libraries answered: [rows, outputs]."""
    table = pq.read_table(repository / GOLDEN)
    expected = np.array([table[EXPECTED + name].to_numpy() for name in outputs]).T
    return table.select([name for name in table.column_names if not name.startswith(EXPECTED)]), expected


def difference(answers: NDArray[Any], expected: NDArray[Any], tolerance: float = 1e-5) -> dict[str, float]:
    """How far answers are from the expected ones, rows on a split's edge left out.

    A tree of stage 2 sends a row the other way if a stage-1 prediction lies within rounding of its split, and a library
    rounds otherwise in other batches. So a few rows may be off, as many as an export may leave out for this.

    Returns:
        "largest" difference of the other rows, and the part of the rows that is "off".

    Raises:
        ValueError: more rows are off.
    """
    apart = np.abs(np.asarray(answers, np.float64) - expected).max(axis=1)
    apart = np.where(np.isnan(apart), np.inf, apart)
    off = float(np.mean(apart > tolerance))
    if off > OFF:
        raise ValueError(f"{off:.2%} of the golden rows are answered otherwise, by up to {apart.max():.2g}")
    return {"largest": float(apart[apart <= tolerance].max(initial=0.0)), "off": off}
