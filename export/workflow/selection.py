"""Operators that choose, name and describe columns, and change no value."""

from __future__ import annotations

from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.registry import Node, lowers
from tristage.export.workflow.values import Value

__all__: list[str] = []


@lowers(
    "merlin.dag.ops.selection.SelectionOp",
    "merlin.dag.ops.concat_columns.ConcatColumns",
    "merlin.dag.ops.subset_columns.SubsetColumns",
    "merlin.dag.ops.grouping.GroupingOp",
    "merlin.dag.ops.add_metadata.AddMetadata",
    "merlin.dag.ops.add_metadata.AddTags",
    "merlin.dag.ops.add_metadata.AddProperties",
    "merlin.dag.ops.add_metadata.TagAsUserID",
    "merlin.dag.ops.add_metadata.TagAsItemID",
    "merlin.dag.ops.add_metadata.TagAsUserFeatures",
    "merlin.dag.ops.add_metadata.TagAsItemFeatures",
    "nvtabular.ops.add_metadata.AddMetadata",
    "nvtabular.ops.add_metadata.AddTags",
    "nvtabular.ops.add_metadata.AddProperties",
    "nvtabular.ops.add_metadata.TagAsUserID",
    "nvtabular.ops.add_metadata.TagAsItemID",
    "nvtabular.ops.add_metadata.TagAsUserFeatures",
    "nvtabular.ops.add_metadata.TagAsItemFeatures",
    "nvtabular.ops.data_stats.DataStats",
    "nvtabular.ops.value_counts.ValueCount",
)
def select(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """Pass the selected columns on."""
    return {name: node.columns[name] for name in node.names}


@lowers("merlin.dag.ops.subtraction.SubtractionOp")
def subtract(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """Pass on what reaches the node; which of it leaves, the node's output schema says."""
    return dict(node.columns)


@lowers("nvtabular.ops.rename.Rename", "merlin.dag.ops.rename.Rename")
def rename(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """The same columns under other names."""
    return {new: node.columns[old] for new, (old,) in node.op.column_mapping(node.selector).items()}
