"""Operators that have no lowering because none can be right: why, and what to do instead.

A served row is answered by itself: no row may vanish, be added, or change what another row is answered.
"""

from __future__ import annotations

from typing import Any

__all__ = ["REFUSED", "refusal_of"]

_DROPS_ROWS = "leaves rows out, and every served row needs an answer"
# NVTabular 23.8 hashes with dask's hash_object_dispatch, which takes the frame's index in
HASHES_ROW_NUMBERS = (
    "on a CPU NVTabular 23.8 hashes a row's number in the data frame together with its value, so that one value falls "
    "into another bucket on every row (on a GPU it hashes otherwise): no served answer could be what was trained"
)

# operator -> (why, what to do instead)
REFUSED: dict[str, tuple[str, str]] = {
    "nvtabular.ops.dropna.Dropna": (
        _DROPS_ROWS,
        "drop them from the training rows before the workflow, or fill them with FillMissing",
    ),
    "nvtabular.ops.filter.Filter": (_DROPS_ROWS, "filter the training rows before the workflow"),
    "nvtabular.ops.groupby.Groupby": (
        "makes one row of many",
        "group the rows before the workflow, and send list columns",
    ),
    "nvtabular.ops.difference_lag.DifferenceLag": (
        "subtracts another row of the data frame, and a served row has no neighbours",
        "send the earlier value as a column of its own, and subtract it with LambdaOp",
    ),
    "nvtabular.ops.drop_low_cardinality.DropLowCardinality": (
        "chooses columns by the rows it is fitted on",
        "select the columns that it keeps by name",
    ),
    "nvtabular.ops.column_similarity.ColumnSimilarity": (
        "compares rows through sparse matrices of features, which no graph of tensors holds",
        "compute the similarity before the workflow, and send it as a column",
    ),
    "nvtabular.ops.data_stats.DataStats": (
        "only describes the rows it is fitted on",
        "leave it out of the workflow that is served",
    ),
    "nvtabular.ops.hash_bucket.HashBucket": (
        HASHES_ROW_NUMBERS,
        "use Categorify with max_size or freq_threshold, or, for whole numbers, LambdaOp(lambda column: column % n)",
    ),
    "nvtabular.ops.hashed_cross.HashedCross": (
        HASHES_ROW_NUMBERS,
        'use Categorify(encode_type="combo") with max_size or freq_threshold',
    ),
}


def refusal_of(op: Any) -> str | None:
    """Why an operator cannot be compiled and what to do instead; None where nobody looked into it."""
    known = REFUSED.get(f"{type(op).__module__}.{type(op).__qualname__}")
    return None if known is None else f"operator {type(op).__name__} {known[0]}; {known[1]}"
