"""NVTabular operators of the example's own, and how they are compiled.

A saved workflow names this module, so whoever loads one imports it, and that registers the lowerings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from merlin.schema import Tags
from nvtabular.ops import Operator

from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow import Node, NotCompilable, Value, lowers, split_text

__all__ = ["SplitTabs", "TokenCounts"]

WHOLE_NUMBERS = r"\A(-?[0-9]{1,18}(\t-?[0-9]{1,18})*)?\z"


class SplitTabs(Operator):  # type: ignore[misc]
    """Tab-separated text becomes a list of its first `max_length` pieces; a null and an empty text hold none.

    Args:
        max_length: the list's longest.
        dtype: "string", where an empty piece between two tabs is a piece; or "int64", where every piece of a text must
            be a whole number of at most 18 digits.
    """

    def __init__(self, max_length: int, dtype: str = "string") -> None:
        super().__init__()
        self.max_length = max_length
        self.dtype = dtype

    def transform(self, col_selector: Any, df: pd.DataFrame) -> pd.DataFrame:
        """Split every row's text.

        Raises:
            ValueError: a text holds what is no whole number, where whole numbers are wanted.
        """
        return pd.DataFrame({name: self._split(df[name]) for name in col_selector.names}, index=df.index)

    def _split(self, column: pd.Series) -> Any:
        texts = pa.array(column, pa.large_string(), from_pandas=True)
        if self.dtype == "int64":
            odd = pc.invert(pc.match_substring_regex(texts, WHOLE_NUMBERS))
            if pc.any(odd).as_py():
                first = texts.filter(odd)[0].as_py()
                raise ValueError(f"{column.name} holds {first[:60]!r}, which are not whole numbers between tabs")
        some = pc.if_else(pc.equal(texts, ""), None, texts)
        lists = pc.list_slice(pc.split_pattern(some, "\t"), 0, self.max_length)
        # without its nulls: their lists are empty
        lists = pa.ListArray.from_arrays(lists.offsets, lists.values.cast(self.dtype))
        return lists.to_pandas().to_numpy()

    def _compute_dtype(self, col_schema: Any, input_schema: Any) -> Any:
        return col_schema.with_dtype(self.dtype)

    def _compute_shape(self, col_schema: Any, input_schema: Any) -> Any:
        return col_schema.with_shape((None, (0, self.max_length)))


class TokenCounts(Operator):  # type: ignore[misc]
    """`<name>_count` and `<name>_mentions`: a list's tokens, and those of them that are the token `mention`."""

    def __init__(self, mention: int) -> None:
        super().__init__()
        self.mention = mention

    def transform(self, col_selector: Any, df: pd.DataFrame) -> pd.DataFrame:
        """Count the tokens of every row."""
        made = pd.DataFrame(index=df.index)
        for name in col_selector.names:
            lists = pa.array(df[name], pa.large_list(pa.int64()))
            ends = lists.offsets.to_numpy()
            mentions = np.append(0, np.cumsum(lists.values.to_numpy() == self.mention))
            made[f"{name}_count"] = np.diff(ends)
            made[f"{name}_mentions"] = np.diff(mentions[ends])
        return made

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """Which columns are made of which."""
        return {f"{name}_{what}": [name] for name in col_selector.names for what in ("count", "mentions")}

    def _compute_dtype(self, col_schema: Any, input_schema: Any) -> Any:
        return col_schema.with_dtype(np.int64)

    def _compute_shape(self, col_schema: Any, input_schema: Any) -> Any:
        return col_schema.with_shape((None,))

    @property
    def output_tags(self) -> list[Any]:
        """Counts are numbers."""
        return [Tags.CONTINUOUS]


@lowers(SplitTabs)
def _split_tabs(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    return {
        name: split_text(graph, node.columns[name], "\t", node.op.max_length, what=name, dtype=node.op.dtype)
        for name in node.names
    }


@lowers(TokenCounts)
def _token_counts(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    made = {}
    axis = graph.constant(np.array([1], np.int64))
    for name in node.names:
        tokens = node.columns[name]
        if tokens.valid is None:
            raise NotCompilable(f"TokenCounts reads {name}, which holds no lists")
        mentions = graph.add("Equal", tokens.tensor, graph.scalar(node.op.mention, tokens.dtype))
        for what, counted in (("count", tokens.valid), ("mentions", graph.add("And", tokens.valid, mentions))):
            total = graph.add("ReduceSum", graph.cast(counted, "bool", "int64"), axis, keepdims=1)
            made[f"{name}_{what}"] = Value(total, "int64")
    return made
