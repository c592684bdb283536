"""An NVTabular operator of the example's own, and how it is compiled: how many values a text with tabs holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from merlin.schema import Tags
from nvtabular.ops import Operator

from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow import Node, Value, lowers, split_text

__all__ = ["CountTabs"]


class CountTabs(Operator):  # type: ignore[misc]
    """The number of values in a tab-separated text, `most` at most; a null and an empty text hold none."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def transform(self, col_selector: Any, df: pd.DataFrame) -> pd.DataFrame:
        """Count every row's values."""
        return pd.DataFrame({name: self._count(df[name]) for name in col_selector.names}, index=df.index)

    def _count(self, column: pd.Series) -> Any:
        texts = pc.fill_null(pa.array(column, pa.large_string(), from_pandas=True), "")
        count = np.asarray(pc.count_substring(texts, "\t")) + np.asarray(pc.not_equal(texts, ""))
        return np.minimum(count, self.most).astype(np.int64)

    def _compute_dtype(self, col_schema: Any, input_schema: Any) -> Any:
        return col_schema.with_dtype(np.int64)

    @property
    def output_tags(self) -> list[Any]:
        """Counts are numbers."""
        return [Tags.CONTINUOUS]


@lowers(CountTabs)
def _count_tabs(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    made = {}
    axis = graph.constant(np.array([1], np.int64))
    for name in node.names:
        pieces = split_text(graph, node.columns[name], "\t", node.op.most, what=name)
        assert pieces.valid is not None
        total = graph.add("ReduceSum", graph.cast(pieces.valid, "bool", "int64"), axis, keepdims=1)
        made[name] = Value(total, "int64")
    return made
