"""Operators that compute each number by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from tristage.serving.device.operators.bits import as_signed, as_unsigned, like
from tristage.serving.device.operators.registry import Node, Run, Unsupported, operator

# ONNX's numbers of types
TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
}

Unary = Callable[[torch.Tensor], torch.Tensor]

_UNARY: dict[str, Unary] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": lambda x: torch.where(torch.isnan(x), x, torch.sign(x)),
    "Sin": torch.sin,
    "Softsign": torch.nn.functional.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}

Binary = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# what has the same bits whether numbers are signed or not
_WRAPPING: dict[str, Binary] = {
    "Add": torch.add,
    "Mul": torch.mul,
    "Sub": torch.sub,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
_COMPARING: dict[str, Binary] = {
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
}
_LOGICAL: dict[str, Binary] = {"And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor}


@operator(*_UNARY)
def _unary(node: Node) -> Run:
    return _UNARY[node.operator]


@operator(*_LOGICAL)
def _logical(node: Node) -> Run:
    return _LOGICAL[node.operator]


@operator(*_WRAPPING)
def _wrapping(node: Node) -> Run:
    compute = _WRAPPING[node.operator]
    return lambda a, b: like(compute(as_signed(a), as_signed(b)), a)


@operator(*_COMPARING)
def _comparing(node: Node) -> Run:
    compute = _COMPARING[node.operator]
    return lambda a, b: compute(_ordered(a), _ordered(b))


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """Unsigned numbers as signed ones of the same order."""
    signed = as_signed(values)
    return signed if signed is values else signed ^ torch.iinfo(signed.dtype).min


@operator("Equal")
def _equal(node: Node) -> Run:
    return lambda a, b: torch.eq(as_signed(a), as_signed(b))


@operator("IsInf")
def _is_inf(node: Node) -> Run:
    if not node.says.get("detect_negative", 1) or not node.says.get("detect_positive", 1):
        raise Unsupported("IsInf of one sign")
    return lambda x: torch.isinf(x)


@operator("Div")
def _div(node: Node) -> Run:
    def divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")

    return _signed_only(divide)


@operator("Mod")
def _mod(node: Node) -> Run:
    return _signed_only(torch.fmod if node.says.get("fmod", 0) else torch.remainder)


def _signed_only(compute: Binary) -> Run:
    def checked(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if as_signed(a) is not a:
            raise Unsupported(f"a division of {a.dtype}")
        return compute(a, b)

    return checked


@operator("Pow")
def _pow(node: Node) -> Run:
    return lambda a, b: torch.pow(a, b).to(a.dtype)


@operator("BitShift")
def _bit_shift(node: Node) -> Run:
    left = node.says["direction"] == b"LEFT"

    def shift(a: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        bits, by = as_signed(a), as_signed(by)
        if left:
            return like(bits << by, a)
        if bits is a:  # uint8: there is nothing to sign
            return a >> by
        width = torch.iinfo(bits.dtype).bits
        kept = torch.where(by == 0, -1, (1 << (width - by).clamp(max=width - 1)) - 1)
        return like((bits >> by) & kept.to(bits.dtype), a)

    return shift


@operator("Max", "Min", "Sum", "Mean")
def _of_several(node: Node) -> Run:
    pair: Binary = {"Max": torch.maximum, "Min": torch.minimum}.get(node.operator, torch.add)

    def compute(*parts: torch.Tensor) -> torch.Tensor:
        made = reduce(pair, parts)
        return made / len(parts) if node.operator == "Mean" else made

    return compute


@operator("Clip")
def _clip(node: Node) -> Run:
    def clip(x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None) -> torch.Tensor:
        x = x if low is None else torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)

    return clip


@operator("Where")
def _where(node: Node) -> Run:
    return lambda where, a, b: like(torch.where(where, as_signed(a), as_signed(b)), a)


@operator("Cast")
def _cast(node: Node) -> Run:
    if node.says["to"] not in TYPES:
        raise Unsupported(f"Cast to ONNX's type {node.says['to']}")
    to = TYPES[node.says["to"]]
    return lambda x: cast(x, to)


def cast(x: torch.Tensor, to: torch.dtype) -> torch.Tensor:
    """Numbers as another type. Floats that an integer cannot hold become its lowest, as processors of PCs make them."""
    if x.dtype == to:
        return x
    if to == torch.bool:
        return as_signed(x) != 0
    if x.is_floating_point() and not to.is_floating_point:
        wide = torch.int32 if to == torch.int32 else torch.int64
        low = torch.iinfo(wide).min
        fits = (x >= float(low)) & (x < -float(low))  # false for NaN
        whole = torch.where(fits, x, torch.zeros_like(x)).to(wide)
        x = torch.where(fits, whole, low)
        return as_unsigned(x.to(_signed_of(to)), to)
    if to in (torch.uint16, torch.uint32, torch.uint64):
        return as_unsigned(x.to(_signed_of(to)), to)
    if x.dtype == torch.uint64:
        if to.is_floating_point:
            high, low = as_signed(x) >> 1 & (1 << 63) - 1, as_signed(x) & 1
            return torch.where(as_signed(x) < 0, (high | low).to(to) * 2, as_signed(x).to(to))
        return as_signed(x).to(to)
    return x.to(to)


def _signed_of(dtype: torch.dtype) -> torch.dtype:
    return {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}.get(dtype, dtype)


@operator("Elu", "LeakyRelu", "HardSigmoid", "Softplus", "Gelu", "HardSwish", "Mish", "PRelu")
def _activation(node: Node) -> Run:
    own: Any = torch.nn.functional
    alpha = node.says.get("alpha")
    match node.operator:
        case "Elu":
            return lambda x: own.elu(x, 1.0 if alpha is None else alpha)
        case "LeakyRelu":
            return lambda x: own.leaky_relu(x, 0.01 if alpha is None else alpha)
        case "HardSigmoid":
            slope, shift = (0.2 if alpha is None else alpha), node.says.get("beta", 0.5)
            return lambda x: (x * slope + shift).clamp(0, 1)
        case "Softplus":
            return lambda x: torch.logaddexp(x, torch.zeros_like(x))
        case "Gelu":
            if node.says.get("approximate", b"none") == b"tanh":
                return lambda x: own.gelu(x, approximate="tanh")
            return lambda x: x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
        case "HardSwish":
            return lambda x: x * (x / 6 + 0.5).clamp(0, 1)
        case "Mish":
            return lambda x: own.mish(x)
        case "PRelu":
            return lambda x, slope: torch.where(x < 0, x * slope, x)
    raise Unsupported(node.operator)
