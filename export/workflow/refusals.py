"""Operators that are served neither compiled nor by NVTabular, because no answer can be right: why, and what to do.

A served row is answered by itself: no row may vanish, be added, or change what another row is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        "reads beyond its matrices of features where an id is not in them, and a client may send any id",
        "compute the similarity before the workflow, and send it as a column",
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


def refusal_of(op: Any, names: Sequence[str]) -> str | None:
    """Why an operator, applied to columns `names`, cannot be served, and what to do instead; None where it can."""
    operator = f"{type(op).__module__}.{type(op).__qualname__}"
    if operator in REFUSED:
        why, instead = REFUSED[operator]
        return f"operator {type(op).__name__} {why}; {instead}"
    use = _USES.get(operator)
    return None if use is None else use(op, names)


def _hashing(op: Any, names: Sequence[str]) -> str | None:
    if not op.num_buckets:
        return None
    return (
        f"Categorify({', '.join(names)}): num_buckets hashes unseen categories: {HASHES_ROW_NUMBERS}; leave "
        "num_buckets out"
    )


def _joining(op: Any, names: Sequence[str]) -> str | None:
    if op.how == "left":
        return None
    return (
        f'JoinExternal(how="{op.how}") leaves out rows whose key is not in the table, and every served row needs an '
        'answer; use how="left"'
    )


def _repeating(op: Any, names: Sequence[str]) -> str | None:
    if op.loop_until is None:
        return None
    return f"Subgraph {op.name} is repeated until its loop_until says so, of all rows of a batch together; unroll it"


# operator of which some uses are refused -> which
_USES: dict[str, Callable[[Any, Sequence[str]], str | None]] = {
    "nvtabular.ops.categorify.Categorify": _hashing,
    "nvtabular.ops.join_external.JoinExternal": _joining,
    "merlin.dag.ops.subgraph.Subgraph": _repeating,
}
