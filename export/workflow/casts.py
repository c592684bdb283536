"""Operators that change a column's dtype and nothing else."""

from __future__ import annotations

import numpy as np

from tristage.columns import DTYPES
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.registry import Node, lowers
from tristage.export.workflow.values import NotCompilable, NotServable, Value, materialise

__all__: list[str] = []


@lowers("nvtabular.ops.reduce_dtype_size.ReduceDtypeSize")
def reduce_dtype_size(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """Signed integers become the smallest that held the fitted rows, floats `float_dtype`; the rest stays.

    A new value that is too large wraps around (int) or becomes infinite (float), as in NumPy's astype.
    """
    made = dict(node.columns)
    for name, reduced in node.op.dtypes.items():
        value = node.columns[name]
        if value.dtype == "string":
            continue
        if value.length is not None:
            raise NotServable(f"ReduceDtypeSize reads the list column {name}, which NVTabular 23.8 fails on too")
        to = np.dtype(reduced.to_numpy).name
        if to not in DTYPES:
            raise NotCompilable(f"ReduceDtypeSize makes {name} {to}, which is not served; give float_dtype float32")
        if value.dtype.startswith("float") and not to.startswith("float"):
            raise NotCompilable(
                f"ReduceDtypeSize makes {name} {to}, which holds no nulls; fill them first with FillMissing"
            )
        made[name] = Value(graph.cast(materialise(graph, value), value.dtype, to), to)
    return made
