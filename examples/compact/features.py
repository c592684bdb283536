"""NVTabular workflows of the systems, fitted, and what they make of rows, as the arrays that nets read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["columns", "fit_workflow", "padded", "sizes_of", "transform"]


def fit_workflow(graph: Any, rows: pd.DataFrame, folder: Path) -> Any:
    """The workflow of a graph of operators, fitted on rows; its categories lie in a folder."""
    with _quiet():
        import nvtabular

        folder.mkdir(parents=True, exist_ok=True)
        workflow = nvtabular.Workflow(graph)
        workflow.fit(nvtabular.Dataset(rows, cpu=True))
    return workflow


def transform(workflow: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """What the workflow makes of raw rows."""
    with _quiet():
        return pd.DataFrame(workflow.transform(rows.reset_index(drop=True)))


def sizes_of(features: pd.DataFrame, names: Sequence[str]) -> list[int]:
    """Rows that an embedding table needs for each column of codes: one more than the largest."""
    flat = {name: pa.array(features[name]) for name in names}
    values = {name: its.flatten() if pa.types.is_nested(its.type) else its for name, its in flat.items()}
    return [int(np.asarray(values[name]).max()) + 1 for name in names]


def columns(features: pd.DataFrame, names: Sequence[str], dtype: str) -> NDArray[Any]:
    """Scalar columns side by side: [rows, names]."""
    return np.stack([features[name].to_numpy(dtype) for name in names], axis=1)


def padded(column: pd.Series, length: int) -> NDArray[np.int64]:
    """A list column cut to `length` and filled up with 0: [rows, length]."""
    made = np.zeros((len(column), length), np.int64)
    for row, values in enumerate(column):
        kept = np.asarray(values, np.int64)[:length]
        made[row, : len(kept)] = kept
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask in this thread, and none of NVTabular's own warnings."""
    import dask

    with warnings.catch_warnings(), dask.config.set(scheduler="synchronous"):
        warnings.simplefilter("ignore")
        yield
