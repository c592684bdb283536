"""Operators that read tables. An index that a table has no row for is a fault of its row, not the end of the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tristage.serving.device.operators.bits import as_signed, like
from tristage.serving.device.operators.registry import Node, Run, Unsupported, operator, within
from tristage.serving.device.tables import Table


@operator("Gather")
def _gather(node: Node) -> Run:
    axis = node.says.get("axis", 0)

    def gather(table: torch.Tensor | Table, index: torch.Tensor) -> torch.Tensor:
        if not isinstance(table, torch.Tensor):
            made = table.rows(_within(node, index, len(table)).reshape(-1))
            return made.reshape((*index.shape, *made.shape[1:]))
        at = _within(node, index, table.shape[axis])
        made = as_signed(table).index_select(axis, at.reshape(-1))
        before, after = table.shape[: axis % table.dim()], table.shape[axis % table.dim() + 1 :]
        return like(made.reshape((*before, *index.shape, *after)), table)

    return gather


@operator("GatherElements")
def _gather_elements(node: Node) -> Run:
    axis = node.says.get("axis", 0)

    def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return like(torch.gather(as_signed(x), axis, _within(node, index, x.shape[axis])), x)

    return gather


@operator("GatherND")
def _gather_nd(node: Node) -> Run:
    batch = node.says.get("batch_dims", 0)

    def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        places = [_within(node, part, x.shape[batch + at]) for at, part in enumerate(index.unbind(-1))]
        leading = [
            torch.arange(size, device=x.device).reshape([-1 if at == dim else 1 for at in range(index.dim() - 1)])
            for dim, size in enumerate(x.shape[:batch])
        ]
        return like(as_signed(x)[tuple(leading + places)], x)

    return gather


@operator("ScatterElements")
def _scatter_elements(node: Node) -> Run:
    if node.says.get("reduction", b"none") != b"none":
        raise Unsupported("ScatterElements that reduces")
    axis = node.says.get("axis", 0)
    return lambda x, index, values: x.scatter(axis, _within(node, index, x.shape[axis]), values)


def _within(node: Node, index: torch.Tensor, size: int) -> torch.Tensor:
    """Indices of rows, or of sizes, which stay on the host."""
    faults = node.faults if index.device.type == node.device.type else None
    return within(index.to(torch.int64), size, f"an index of {node.name} is out of range", faults)


@operator("ai.onnx.ml:LabelEncoder")
def _label_encoder(node: Node) -> Run:
    keys, values = _entries(node, "keys"), _entries(node, "values")
    if keys.dtype.kind == "f" and np.isnan(keys).any():
        raise Unsupported("LabelEncoder of a key NaN")
    order = np.argsort(keys, kind="stable")
    if len(np.unique(keys)) < len(keys):
        raise Unsupported("LabelEncoder of a key that is there twice")
    kind, otherwise = ("int64", -1) if values.dtype.kind == "i" else ("float", -0.0)
    other = np.asarray(node.says.get("default_tensor", node.says.get(f"default_{kind}", otherwise)), values.dtype)
    known = torch.from_numpy(np.ascontiguousarray(keys[order])).to(node.device)
    made = torch.from_numpy(np.ascontiguousarray(values[order])).to(node.device)
    default = torch.from_numpy(other.reshape(-1)[:1].copy()).to(node.device)

    def encode(x: torch.Tensor) -> torch.Tensor:
        at = torch.searchsorted(known, x.contiguous()).clamp(max=len(known) - 1)
        return torch.where(known[at] == x, made[at], default)

    return encode


def _entries(node: Node, side: str) -> NDArray[Any]:
    for name, dtype in (("int64s", np.int64), ("floats", np.float32), ("tensor", None)):
        if f"{side}_{name}" in node.says:
            return np.asarray(node.says[f"{side}_{name}"], dtype)
    raise Unsupported("LabelEncoder of texts")
