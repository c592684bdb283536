"""A workflow that cannot be compiled, described so that NVTabular itself can serve it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tristage.columns import DTYPES, Column
from tristage.errors import ArtifactError
from tristage.export.workflow.lineage import raw_names
from tristage.manifest import checksums
from tristage.serving.nvtabular import TransformFailed, at_serving_time, cut_lists, frame, transform, values
from tristage.serving.workflow_file import Port, WorkflowFile, installed, neutral_row

__all__ = ["InterpretedWorkflow", "interpret"]


@dataclass(frozen=True)
class InterpretedWorkflow:
    """A workflow that NVTabular itself serves.

    Attributes:
        reason: which operator cannot be compiled, and why.
        file: what its `workflow.json` says, but for the tensors that come out.
        reads: output column -> the raw columns that it is made of.
        unserved: output column that cannot be served -> why, and what to do.
    """

    reason: str
    file: WorkflowFile
    reads: Mapping[str, frozenset[str]]
    unserved: Mapping[str, str]

    def emitting(self, ports: Sequence[Port]) -> WorkflowFile:
        """The `workflow.json` of a model that emits some of the columns, and reads what they are made of."""
        read = {name for port in ports for column in port.columns for name in self.reads[column.name]}
        return WorkflowFile(
            self.file.folder,
            self.file.files,
            self.file.versions,
            tuple(column for column in self.file.inputs if column.name in read),
            {name: row for name, row in self.file.companion.items() if name in read},
            tuple(ports),
        )


def interpret(
    workflow: Any, folder: Path, raw: tuple[Column, ...], golden: Any, reason: str
) -> tuple[InterpretedWorkflow, tuple[Column, ...]]:
    """Describe a fitted workflow as NVTabular serves it.

    Args:
        workflow: the workflow, as it was loaded from the folder.
        folder: the folder.
        raw: its raw columns.
        golden: a pandas.DataFrame of golden rows; None without.
        reason: why it cannot be compiled.

    Returns:
        The description, and the columns it makes.

    Raises:
        ArtifactError: NVTabular cannot transform the golden rows, or without them a row of zeros.
    """
    companion = neutral_row(raw)
    if golden is not None:
        present = {column.name: _present(golden, column) for column in raw}
        companion.update({name: row for name, row in present.items() if row is not None})
    rows = frame({c.name: np.array([companion[c.name]], c.numpy_dtype) for c in raw}, raw)
    try:
        made = transform(at_serving_time(workflow), rows if golden is None else cut_lists(golden, raw))
    except TransformFailed as error:
        asked = "a row of zeros and empty texts; give the stack golden rows" if golden is None else "the golden rows"
        raise ArtifactError(f"{reason}, and NVTabular's transform fails on {asked} ({error})") from error
    columns: list[Column] = []
    unserved: dict[str, str] = {}
    lists = _lists(workflow, raw)
    for schema in workflow.output_schema:
        found = _column(made[schema.name], schema, lists.get(schema.name), golden is None)
        if isinstance(found, Column):
            columns.append(found)
        else:
            unserved[schema.name] = found
    file = WorkflowFile(str(folder.resolve()), checksums(folder), installed(), raw, companion, ())
    reads = {column.name: frozenset(raw_names(workflow.output_node, {column.name})) for column in columns}
    return InterpretedWorkflow(reason, file, reads, unserved), tuple(columns)


def _lists(workflow: Any, raw: Sequence[Column]) -> dict[str, Column]:
    """The raw list columns by name; categories are filled up with 0, as a compiled workflow fills them up."""
    from merlin.dag.node import iter_nodes
    from nvtabular.ops import Categorify

    nodes = iter_nodes([workflow.output_node], flatten_subgraphs=True)
    coded = {name for node in nodes if isinstance(node.op, Categorify) for name in node.output_schema.column_names}
    lists = {column.name: column for column in raw if column.length is not None}
    return {name: replace(column, pad=0) if name in coded else column for name, column in lists.items()}


def _present(golden: Any, column: Column) -> tuple[int | float | str, ...] | None:
    """The first value of a column that is not null, nor an empty list, as it travels."""
    if column.name not in golden:
        return None
    present = golden[column.name].dropna()
    if column.length is not None:
        present = present[present.map(len) > 0]
    if not len(present):
        return None
    return tuple(values(present.iloc[:1], column).astype(column.numpy_dtype).ravel().tolist())


def _column(series: Any, schema: Any, like: Column | None, by_schema: bool) -> Column | str:
    """The column that a series is, or why it cannot be served.

    Args:
        series: some rows of it.
        schema: what NVTabular says of it.
        like: the raw list column of its name.
        by_schema: whether NVTabular's word on the dtype counts more than the rows.
    """
    import pandas as pd

    said = _named("string" if schema.dtype.name in ("object", "str") else schema.dtype.name)
    lists = series.dropna()[series.dropna().map(pd.api.types.is_list_like)] if series.dtype == object else ()
    if len(lists) or schema.is_list:
        flat = pd.Series([element for row in lists for element in row])
        dtype = said if said in DTYPES and (by_schema or not len(flat)) else _dtype(flat)
        if like is None or like.length is None:
            return (
                "holds lists, and nothing says how long they may be in a workflow that NVTabular itself serves: leave "
                "it unread, or compile the workflow, where ListSlice says it (docs/custom_operators.md)"
            )
        if dtype not in DTYPES:
            return f"holds lists of {dtype}, which are not served"
        longest = max(map(len, lists), default=0)
        if longest > like.length:
            return f"holds lists of {longest} elements, and inputs declares at most {like.length} for {schema.name}"
        fits = dtype == like.dtype or like.pad == 0
        pad = like.pad if fits else "" if dtype == "string" else float("nan") if dtype.startswith("float") else 0
        return Column(schema.name, dtype, like.length, pad)
    dtype = said if by_schema and said in DTYPES else _dtype(series)
    if dtype == "empty":
        dtype = said
    return Column(schema.name, dtype) if dtype in DTYPES else f"is {dtype}, which is not served"


def _dtype(series: Any) -> str:
    import pandas as pd

    if series.dtype != object:
        return "string" if isinstance(series.dtype, pd.StringDtype) else _named(str(series.dtype))
    kind = str(pd.api.types.infer_dtype(series, skipna=True))
    # objects where nulls stand among numbers
    return "float64" if kind in ("integer", "floating", "mixed-integer-float", "boolean") else kind


def _named(dtype: str) -> str:
    return "float32" if dtype == "float16" else dtype  # which holds each of its values
