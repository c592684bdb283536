"""Operators that move numbers, and those that join many into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tristage.serving.device.operators.arithmetic import TYPES, cast
from tristage.serving.device.operators.bits import as_signed, like
from tristage.serving.device.operators.registry import Node, Run, Unsupported, operator

Sizes = Sequence[int]


@operator("Identity", "Dropout")
def _identity(node: Node) -> Run:
    return lambda x, *_: x


@operator("Shape")
def _shape(node: Node) -> Run:
    start, end = node.says.get("start", 0), node.says.get("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


@operator("Size")
def _size(node: Node) -> Run:
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@operator("Concat")
def _concat(node: Node) -> Run:
    axis = node.says["axis"]
    return lambda *parts: like(torch.cat([as_signed(part) for part in parts], dim=axis), parts[0])


@operator("Reshape", sizes=(1,))
def _reshape(node: Node) -> Run:
    keeps_zeros = node.says.get("allowzero", 0)

    def reshape(x: torch.Tensor, to: Sizes) -> torch.Tensor:
        return x.reshape([x.shape[at] if size == 0 and not keeps_zeros else size for at, size in enumerate(to)])

    return reshape


@operator("Flatten")
def _flatten(node: Node) -> Run:
    axis = node.says.get("axis", 1)

    def flatten(x: torch.Tensor) -> torch.Tensor:
        rows = 1
        for size in x.shape[: axis if axis >= 0 else x.dim() + axis]:
            rows *= size
        return x.reshape(rows, -1)

    return flatten


@operator("Squeeze", sizes=(1,))
def _squeeze(node: Node) -> Run:
    own = node.says.get("axes")

    def squeeze(x: torch.Tensor, axes: Sizes | None = own) -> torch.Tensor:
        return x.squeeze() if axes is None else x.squeeze(tuple(axes))

    return squeeze


@operator("Unsqueeze", sizes=(1,))
def _unsqueeze(node: Node) -> Run:
    def unsqueeze(x: torch.Tensor, given: Sizes | None = None) -> torch.Tensor:
        axes: Sizes = node.says["axes"] if given is None else given
        dims = x.dim() + len(axes)
        for axis in sorted(axis % dims for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


@operator("Transpose")
def _transpose(node: Node) -> Run:
    order = node.says.get("perm")
    return lambda x: x.permute(*(order if order is not None else reversed(range(x.dim()))))


@operator("Expand", sizes=(1,))
def _expand(node: Node) -> Run:
    def expand(x: torch.Tensor, to: Sizes) -> torch.Tensor:
        return like(as_signed(x).expand(torch.broadcast_shapes(x.shape, tuple(to))), x)

    return expand


@operator("Tile", sizes=(1,))
def _tile(node: Node) -> Run:
    return lambda x, times: x.repeat(*times)


@operator("Slice", sizes=(1, 2, 3, 4))
def _slice(node: Node) -> Run:
    def cut(
        x: torch.Tensor, starts: Sizes, ends: Sizes, axes: Sizes | None = None, steps: Sizes | None = None
    ) -> torch.Tensor:
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            axis, step = (number if axes is None else axes[number]), (1 if steps is None else steps[number])
            taken = range(x.shape[axis])[slice(start, end if step > 0 or end >= -x.shape[axis] else None, step)]
            before = (slice(None),) * (axis % x.dim())
            if step > 0:
                x = x[(*before, slice(taken.start, taken.stop, step))]
            else:  # torch counts no slices down
                low, high = (taken[-1], taken[0] + 1) if taken else (0, 0)
                x = x[(*before, slice(low, high, -step))].flip(axis)
        return x

    return cut


@operator("Split", sizes=(1,))
def _split(node: Node) -> Run:
    axis, own = node.says.get("axis", 0), node.says.get("split")

    def split(x: torch.Tensor, sizes: Sizes | None = own) -> tuple[torch.Tensor, ...]:
        each = -(-x.shape[axis] // len(node.makes))
        return tuple(torch.split(x, each if sizes is None else list(sizes), dim=axis))

    return split


@operator("Pad", sizes=(1, 3))
def _pad(node: Node) -> Run:
    if node.says.get("mode", b"constant") != b"constant":
        raise Unsupported("Pad by what is there")

    def pad(x: torch.Tensor, by: Sizes, value: torch.Tensor | None = None, axes: Sizes | None = None) -> torch.Tensor:
        axes = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
        around = [[0, 0] for _ in range(x.dim())]
        for number, axis in enumerate(axes):
            around[axis] = [by[number], by[number + len(axes)]]
        shape = [size + sum(its) for size, its in zip(x.shape, around, strict=True)]
        made = (torch.zeros((), dtype=x.dtype, device=x.device) if value is None else value).expand(shape).clone()
        made[tuple(slice(before, before + size) for (before, _), size in zip(around, x.shape, strict=True))] = x
        return made

    return pad


@operator("ConstantOfShape", sizes=(0,))
def _constant_of_shape(node: Node) -> Run:
    value = torch.tensor(node.says.get("value", [0.0]), device=node.device).reshape(())
    return lambda shape: value.expand(tuple(shape)).clone()


@operator("Range", sizes=(0, 1, 2))
def _range(node: Node) -> Run:
    return lambda start, end, step: torch.arange(*start, *end, *step, device=node.device)


@operator("Trilu", sizes=(1,))
def _trilu(node: Node) -> Run:
    keep = torch.triu if node.says.get("upper", 1) else torch.tril
    return lambda x, k=None: keep(x, 0 if k is None else k[0])


_REDUCE: dict[str, Any] = {
    "ReduceSum": torch.sum,
    "ReduceMean": torch.mean,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceProd": torch.prod,
    "ReduceL2": torch.linalg.vector_norm,
}


@operator(*_REDUCE, sizes=(1,))
def _reduce(node: Node) -> Run:
    compute, keeps = _REDUCE[node.operator], bool(node.says.get("keepdims", 1))
    own, nothing = node.says.get("axes"), node.says.get("noop_with_empty_axes", 0)

    def reduced(x: torch.Tensor, axes: Sizes | None = own) -> torch.Tensor:
        if not axes and nothing:
            return x
        dims = tuple(range(x.dim())) if not axes else tuple(axis % x.dim() for axis in axes)
        if node.operator == "ReduceProd":
            for dim in sorted(dims, reverse=True):
                x = torch.prod(x, dim, keepdim=keeps, dtype=x.dtype)
            return x
        if node.operator == "ReduceSum":
            return torch.sum(x, dims, keepdim=keeps, dtype=x.dtype)
        return compute(x, dim=dims, keepdim=keeps)

    return reduced


@operator("ArgMax", "ArgMin")
def _arg(node: Node) -> Run:
    if node.says.get("select_last_index", 0):
        raise Unsupported("ArgMax of the last")
    axis, keeps = node.says.get("axis", 0), bool(node.says.get("keepdims", 1))
    descending = node.operator == "ArgMax"

    def first(x: torch.Tensor) -> torch.Tensor:  # torch's argmax answers any of several that are equal
        at = torch.sort(x, dim=axis, descending=descending, stable=True).indices.narrow(axis, 0, 1)
        return at if keeps else at.squeeze(axis)

    return first


@operator("TopK", sizes=(1,))
def _top_k(node: Node) -> Run:
    axis, descending = node.says.get("axis", -1), bool(node.says.get("largest", 1))

    def top(x: torch.Tensor, k: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
        made = torch.sort(x, dim=axis, descending=descending, stable=True)  # of equals the first, as ONNX says
        return made.values.narrow(axis, 0, k[0]), made.indices.narrow(axis, 0, k[0])

    return top


@operator("CumSum", sizes=(1,))
def _cum_sum(node: Node) -> Run:
    if node.says.get("exclusive", 0) or node.says.get("reverse", 0):
        raise Unsupported("CumSum that leaves out its own, or counts from the end")
    return lambda x, axis: torch.cumsum(x, axis[0], dtype=x.dtype)


@operator("OneHot", sizes=(1,))
def _one_hot(node: Node) -> Run:
    axis = node.says.get("axis", -1)

    def one_hot(x: torch.Tensor, depth: Sizes, values: torch.Tensor) -> torch.Tensor:
        at = x.unsqueeze(axis)
        at = torch.where(at < 0, at + depth[0], at)
        shape = [1] * at.dim()
        shape[axis] = depth[0]
        numbers = torch.arange(depth[0], device=x.device, dtype=x.dtype).reshape(shape)
        return torch.where(at == numbers, values[1], values[0])

    return one_hot


@operator("EyeLike")
def _eye_like(node: Node) -> Run:
    def eye(x: torch.Tensor) -> torch.Tensor:
        to = TYPES[node.says["dtype"]] if "dtype" in node.says else x.dtype
        return cast(torch.eye(*x.shape, device=x.device), to)

    return eye
