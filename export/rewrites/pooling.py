"""The mean or sum over steps and a Dense layer change places: the layer of a mean is the mean of the layer.

Where steps are looked up and then pooled, the layer goes first and into the table; where a layer is computed for every
step and then pooled, the pooling goes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx

from tristage.export.rewrites.editable import EditableGraph, attributes
from tristage.export.rewrites.embeddings import again, dense_after, fold, growth, looked_up, rows_of
from tristage.export.rewrites.finding import Finding, Rewrite

__all__ = ["COMMUTE_POOLING"]


def _apply(graph: EditableGraph) -> Iterator[Finding]:
    for node in [node for node in graph.nodes if node.op_type in ("ReduceMean", "ReduceSum")]:
        if any(node is other for other in graph.nodes) and _pools_steps(graph, node):
            yield from _into_table(graph, node)
    for node in [node for node in graph.nodes if node.op_type == "MatMul"]:
        yield from _pool_first(graph, node)


def _pools_steps(graph: EditableGraph, node: onnx.NodeProto) -> bool:
    """Whether a node pools [rows, steps, width] over the steps, to [rows, width]."""
    axes = graph.integers(node.input[1]) if len(node.input) > 1 else None
    return (
        axes in ([1], [-2]) and len(graph.shape(node.input[0]) or ()) == 3 and not attributes(node).get("keepdims", 1)
    )


def _into_table(graph: EditableGraph, pool: onnx.NodeProto) -> Iterator[Finding]:
    look_up = looked_up(graph, pool.input[0])
    reader = graph.only_reader(pool.output[0], "MatMul", "Gemm")
    dense = None if reader is None else dense_after(graph, pool.output[0], reader)
    if look_up is None or dense is None or graph.only_reader(pool.input[0]) is None:
        return
    width, out = dense.weights.shape
    where = f"Dense {width} -> {out} of a {pool.op_type.removeprefix('Reduce').lower()} of looked up rows"
    grown = growth(graph, look_up, out)
    if grown > 0:  # every step would then look up more than the layer saves once
        yield Finding("commute_pooling", where, False, why=f"the table would be {grown / 1e6:,.1f} MB larger")
        return
    saved = width * out + rows_of(graph, look_up) * (width - out)
    table, grown = fold(graph, look_up, replace(dense, bias=None))
    graph.remove(pool, *dense.nodes)
    rows = again(graph, look_up, table)
    if dense.bias is None:
        graph.add(pool.op_type, rows, pool.input[1], outputs=[dense.output], keepdims=0)
    else:
        pooled = graph.add(pool.op_type, rows, pool.input[1], keepdims=0)
        graph.add("Add", pooled, graph.add_constant(np.ascontiguousarray(dense.bias)), outputs=[dense.output])
    graph.drop_unread()
    yield Finding("commute_pooling", where, True, saved, grown)


def _pool_first(graph: EditableGraph, node: onnx.NodeProto) -> Iterator[Finding]:
    dense = dense_after(graph, node.input[0], node)
    pool = None if dense is None else graph.only_reader(dense.output, "ReduceMean", "ReduceSum")
    steps = (graph.shape(node.input[0]) or (None, None))[1:2]
    if dense is None or pool is None or pool.input[0] != dense.output or not steps or not steps[0]:
        return
    if not _pools_steps(graph, pool):
        return
    width, out = dense.weights.shape
    graph.remove(pool, *dense.nodes)
    pooled = graph.add(pool.op_type, node.input[0], pool.input[1], keepdims=0)
    weights = graph.add_constant(np.ascontiguousarray(dense.weights))
    if dense.bias is None:
        graph.add("MatMul", pooled, weights, outputs=[pool.output[0]])
    else:
        times = steps[0] if pool.op_type == "ReduceSum" else 1
        bias = graph.add_constant((dense.bias.astype(np.float64) * times).astype(np.float32))
        graph.add("Gemm", pooled, weights, bias, outputs=[pool.output[0]])
    kind = pool.op_type.removeprefix("Reduce").lower()
    yield Finding("commute_pooling", f"{kind} of Dense {width} -> {out}", True, (steps[0] - 1) * width * out)


COMMUTE_POOLING = Rewrite("commute_pooling", "a mean or sum over steps and a Dense layer change places", _apply)
