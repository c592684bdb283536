"""Operators that choose, name and cut columns."""

from __future__ import annotations

import numpy as np

from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.registry import Node, lowers
from tristage.export.workflow.values import NotCompilable, Value

__all__: list[str] = []


@lowers(
    "merlin.dag.ops.selection.SelectionOp",
    "merlin.dag.ops.concat_columns.ConcatColumns",
    "merlin.dag.ops.subset_columns.SubsetColumns",
    "merlin.dag.ops.grouping.Grouping",
    "nvtabular.ops.add_metadata.AddMetadata",
    "nvtabular.ops.add_metadata.AddTags",
    "nvtabular.ops.add_metadata.AddProperties",
    "nvtabular.ops.add_metadata.TagAsUserID",
    "nvtabular.ops.add_metadata.TagAsItemID",
    "nvtabular.ops.add_metadata.TagAsUserFeatures",
    "nvtabular.ops.add_metadata.TagAsItemFeatures",
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


@lowers("nvtabular.ops.list_slice.ListSlice")
def list_slice(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """The elements `start` to `end` of each list.

    NVTabular 23.8 does not pad NumPy-backed lists on a CPU whatever `pad` says; a served list is always padded to its
    declared length, with `pad_value` where the operator has `pad`.
    """
    made = {}
    for name in node.names:
        value = node.columns[name]
        if value.length is None or value.valid is None:
            raise NotCompilable(f"ListSlice reads {name}, which is not a list column")
        if node.op.start < 0 or node.op.end < 0:
            raise NotCompilable(f"ListSlice counts from the end of {name}; only slices from the front are compiled")
        kept = range(int(node.op.start), min(int(node.op.end), value.length))
        if not kept:
            raise NotCompilable(
                f"ListSlice takes the elements {node.op.start} to {node.op.end} of {name}, of which no list of at most "
                f"{value.length} has any; declare a larger max_length"
            )
        made[name] = Value(
            tensor=graph.columns(value.tensor, kept, value.length),
            dtype=value.dtype,
            length=len(kept),
            valid=graph.columns(value.valid, kept, value.length),
            pad=np.dtype(value.dtype).type(node.op.pad_value).item()
            if node.op.pad and value.dtype != "string"
            else value.pad,
            width=len(kept),
            raw_pad=value.raw_pad,
        )
    return made
