"""NVTabular itself: a fitted workflow made ready to serve, rows as the data frame it takes, its columns as arrays.

The exporter asks it what a step has to answer, and a step that cannot be compiled is served by it: both do it here.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import NULL_STRING, Column

__all__ = ["TransformFailed", "at_serving_time", "cut_lists", "frame", "load", "transform", "values"]


class TransformFailed(Exception):
    """NVTabular cannot transform rows; the message says why."""


def load(folder: Path) -> Any:
    """Load the workflow that Workflow.save wrote to a folder. Whatever its pickle says is run.

    Raises:
        Exception: whatever NVTabular and the operators raise.
    """
    with _unimported("tensorflow", "torch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it did not find them
        import nvtabular
    return nvtabular.Workflow.load(folder)


@contextlib.contextmanager
def _unimported(*modules: str) -> Iterator[None]:
    """Keep modules from being imported: NVTabular takes ten seconds for frameworks it finds, and does without them."""
    absent = [module for module in modules if module not in sys.modules]
    missing: dict[str, Any] = dict.fromkeys(absent)  # None makes an import fail
    sys.modules.update(missing)
    try:
        yield
    finally:
        for module in absent:
            del sys.modules[module]


def at_serving_time(workflow: Any) -> Any:
    """A copy of a workflow with TargetEncoding over all folds: at serving time a row belongs to no fold."""
    from merlin.dag.node import iter_nodes
    from nvtabular.ops import TargetEncoding

    workflow = copy.deepcopy(workflow)
    for node in iter_nodes([workflow.output_node], flatten_subgraphs=True):
        if isinstance(node.op, TargetEncoding):
            node.op.kfold = 1
    return workflow


def frame(tensors: Mapping[str, NDArray[Any]], columns: Sequence[Column]) -> Any:
    """Raw columns as they travel -> the pandas.DataFrame that they were before.

    Args:
        tensors: name -> array [rows, width] of the column's wire dtype; strings as object arrays of str.
        columns: the columns.

    Returns:
        A frame with the index 0, 1, ...: None for a null text, NaN for a null number (a whole-number column that may
        hold nulls is float64, as pandas makes of it), objects where a boolean may be null, Python lists.
    """
    import pandas as pd

    return pd.DataFrame({column.name: _series(tensors[column.name], column) for column in columns})


def _series(array: NDArray[Any], column: Column) -> Any:
    if column.length is not None:
        return _lists(array, column)
    scalars = array[:, 0]
    if column.dtype == "string":
        return _nulled(scalars, scalars == NULL_STRING)
    if column.dtype == "bool" and column.nullable:
        return _nulled(scalars == 1, np.isnan(scalars))
    return scalars


def _nulled(scalars: NDArray[Any], null: NDArray[np.bool_]) -> NDArray[np.object_]:
    objects = scalars.astype(object)
    objects[null] = None
    return objects


def _lists(array: NDArray[Any], column: Column) -> Any:
    """Lists without their padding, which is what stands last: an element that equals the pad may stand before."""
    import pandas as pd

    is_nan = isinstance(column.pad, float) and column.pad != column.pad
    element = ~np.isnan(array) if is_nan else array != column.pad
    lengths = np.where(element, np.arange(1, array.shape[1] + 1), 0).max(axis=1, initial=0)
    lists = [list(row[:length]) for row, length in zip(array, lengths.tolist(), strict=True)]
    return pd.Series(lists, dtype=object)


def cut_lists(rows: Any, columns: Sequence[Column]) -> Any:
    """A data frame with the lists that a client would send of it: cut at their columns' lengths, no null among them."""
    rows = rows.copy(deep=False)
    for column in columns:
        if column.length is not None and column.name in rows:
            rows[column.name] = [[] if row is None else list(row)[: column.length] for row in rows[column.name]]
    return rows


def transform(workflow: Any, rows: Any) -> Any:
    """Ask a workflow.

    Args:
        workflow: as `at_serving_time` makes it.
        rows: a pandas.DataFrame of raw rows with the index 0, 1, ...; columns that are read by nothing that matters,
            such as the targets of TargetEncoding, may be absent.

    Returns:
        The pandas.DataFrame of its output columns.

    Raises:
        TransformFailed: an operator fails, or makes fewer or more rows.
    """
    import pandas as pd

    rows = rows.copy(deep=False)
    for schema in workflow.input_schema:
        if schema.name not in rows:
            rows[schema.name] = _filler(schema, len(rows))
    log = logging.getLogger("merlin")
    muted, log.disabled = log.disabled, True  # it prints a traceback of what it raises
    try:
        with warnings.catch_warnings():
            # beyond 100 columns, for each: NVTabular adds them one by one
            warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
            made = workflow.transform(rows[workflow.input_schema.column_names])
    except Exception as error:  # NVTabular lets pandas' errors through
        said = f"{error}" or type(error).__name__
        raise TransformFailed(f"{said}: {error.__cause__}" if error.__cause__ else said) from error
    finally:
        log.disabled = muted
    if len(made) != len(rows):
        raise TransformFailed("it leaves rows out or adds some, and every served row needs one answer")
    return made


def _filler(schema: Any, rows: int) -> Any:
    """What stands in for a column that is absent, of the column's kind so that no operator stumbles over it."""
    if schema.is_list:
        return [[] for _ in range(rows)]
    if schema.dtype.name in ("object", "string", "str"):
        return ""
    return np.zeros(rows, "int64" if schema.dtype.name == "unknown" else schema.dtype.to_numpy)


def values(series: Any, column: Column) -> NDArray[Any]:
    """A column of a data frame as an array, [rows] of scalars, [rows, length] of lists, in the dtype it has there.

    Null texts become NULL_STRING; lists are cut at the column's length, and filled up with its pad.
    """
    if column.length is None:
        return np.where(series.isna(), NULL_STRING, series) if column.dtype == "string" else np.asarray(series)
    lists = [[] if elements is None else elements[: column.length] for elements in series]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    flat = np.array(list(chain.from_iterable(lists)), object if column.dtype == "string" else None)
    padded = np.full((len(lists), column.length), column.pad, np.result_type(flat, column.numpy_dtype))
    padded[np.arange(column.length) < lengths[:, None]] = flat
    return padded
