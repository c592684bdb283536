"""ONNX nodes as the columns engine's instructions, each equal to what ONNX Runtime computes.

Tensors are [rows], [rows, width] or [rows, length, width]. What has no lowering, or a use of it that has none, is
Unsupported, and stays with ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx

from tristage.export.columns.assemble import Assembler, Constant, Held, Operand, Rows, Unsupported
from tristage.export.onnx_graph import dtype_of

__all__ = ["lower"]

Value = Held | Constant
Given = Held | Rows | Constant | None
_GOLDEN = 0x9E3779B97F4A7C15  # as in serving/columns/run.c


@dataclass(frozen=True)
class _Node:
    inputs: tuple[Given, ...]
    attributes: Mapping[str, Any]

    def held(self, place: int = 0) -> Held:
        value = self.inputs[place]
        if not isinstance(value, Held):
            raise Unsupported("a constant")
        return value

    @property
    def dtype(self) -> str:
        """Of the first tensor that it reads."""
        held = next((value for value in self.inputs if isinstance(value, Held)), None)
        if held is None:
            raise Unsupported("constants alone")
        return held.dtype

    def numbers(self, place: int, default: Sequence[int] | None = None) -> list[int]:
        """A constant input of whole numbers."""
        value = self.inputs[place] if place < len(self.inputs) else None
        if value is None and default is not None:
            return list(default)
        if not isinstance(value, Constant) or value.file is not None:
            raise Unsupported("numbers that are computed")
        return [int(number) for number in value.values.reshape(-1)]


_LOWERINGS: dict[str, Callable[[_Node, Assembler], Held | Rows]] = {}
_OF_ROWS = ("Mul", "ReduceSum")  # what can be made of rows without having them


def lower(node: onnx.NodeProto, inputs: Sequence[Given], assembler: Assembler) -> Held | Rows:
    """Add a node's instructions; returns what it makes, or rows of a table that are yet to be taken.

    Raises:
        Unsupported: it has no lowering.
    """
    lowering = _LOWERINGS.get(node.op_type)
    if lowering is None or node.domain not in ("", "ai.onnx.ml") or sum(map(bool, node.output)) != 1:
        raise Unsupported(node.op_type)
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type not in _OF_ROWS:
        inputs = [assembler.taken(value) if isinstance(value, Rows) else value for value in inputs]
    return lowering(_Node(tuple(inputs), attributes), assembler)


def _lowers(*ops: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(lowering: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            _LOWERINGS[op] = lowering
        return lowering

    return register


def _shape(values: Sequence[Value]) -> tuple[int, ...]:
    """What tensors and constants are broadcast to; rows are never broadcast."""
    held = [value.shape for value in values if isinstance(value, Held)]
    if not held or len(set(map(len, held))) > 1:
        raise Unsupported("tensors of several ranks")
    dims = list(held)
    for value in values:
        if isinstance(value, Constant):
            own = value.values.shape
            while len(own) > len(held[0]) and own[0] == 1:
                own = own[1:]
            if len(own) > len(held[0]):
                raise Unsupported("a constant for every row")
            dims.append((1,) * (len(held[0]) - len(own)) + own)
    try:
        return np.broadcast_shapes(*dims)
    except ValueError as error:
        raise Unsupported(str(error)) from error


def _operand(value: Value, shape: tuple[int, ...], assembler: Assembler) -> Operand:
    """A tensor or constant, broadcast to a shape of a row."""
    if isinstance(value, Constant):
        values = value.values
        if value.file is not None or values.dtype == object:
            raise Unsupported("a large constant, or one of texts")
        if values.size > 1 and values.size != prod(shape):
            values = np.broadcast_to(values.reshape(values.shape[-len(shape) :]), shape)
        return Operand(assembler.constant(values), 0, int(values.size > 1))
    if value.width == prod(shape):
        return value.where
    if value.width != 1:
        raise Unsupported("a part of the elements broadcast")
    return Operand(value.where.register, value.where.start, 0)


def _dtype(value: Given) -> str:
    assert isinstance(value, (Held, Constant))
    return value.dtype if isinstance(value, Held) else value.values.dtype.name


def _elementwise(assembler: Assembler, operation: str, made: str, *values: Given) -> Held:
    given = [value for value in values if isinstance(value, (Held, Constant))]
    shape = _shape(given)
    out = assembler.make(made, shape)
    assembler.emit(operation, out.width, out.where, *(_operand(value, shape, assembler) for value in given))
    return out


def _name(op: str) -> str:
    """GreaterOrEqual -> greater_or_equal."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in op)[1:]


def _same_type(op: str, operation: str) -> None:
    """An operation whose result is of the type of what it reads."""

    def lowering(node: _Node, assembler: Assembler) -> Held:
        return _elementwise(assembler, f"{operation}_{node.dtype}", node.dtype, *node.inputs)

    _LOWERINGS[op] = lowering


for _op in ("Add", "Sub", "Div", "And", "Or", "Xor", "Not"):
    _same_type(_op, _name(_op))
for _op in ("Abs", "Neg", "Floor", "Ceil", "Sqrt", "Log", "Exp", "Sin", "Cos"):
    _same_type(_op, _name(_op))


@_lowers("Mul")
def _mul(node: _Node, assembler: Assembler) -> Held | Rows:
    first, second = sorted(node.inputs, key=lambda value: not isinstance(value, Rows))
    if isinstance(first, Rows):
        if not isinstance(second, Held) or first.weights is not None:
            raise Unsupported("a product of rows")
        if (second.dtype, second.shape) != ("float32", (*first.number.shape, 1)):
            raise Unsupported("rows that are not weighted one by one")
        return Rows(first.table, first.number, second)
    return _elementwise(assembler, f"mul_{node.dtype}", node.dtype, *node.inputs)


@_lowers("Mod")
def _mod(node: _Node, assembler: Assembler) -> Held:
    if node.attributes.get("fmod"):
        raise Unsupported("a remainder with the sign of what is divided")
    return _elementwise(assembler, f"mod_{_dtype(node.held())}", node.held().dtype, *node.inputs)


@_lowers("BitShift")
def _bit_shift(node: _Node, assembler: Assembler) -> Held:
    way = node.attributes["direction"].decode().lower()
    return _elementwise(assembler, f"shift_{way}_{node.held().dtype}", node.held().dtype, *node.inputs)


def _comparison(op: str, operation: str, turned: bool) -> None:
    def lowering(node: _Node, assembler: Assembler) -> Held:
        first, second = node.inputs[::-1] if turned else node.inputs
        return _elementwise(assembler, f"{operation}_{node.dtype}", "bool", first, second)

    _LOWERINGS[op] = lowering


for _op, _operation, _turned in (
    ("Equal", "equal", False),
    ("Less", "less", False),
    ("LessOrEqual", "less_equal", False),
    ("Greater", "less", True),
    ("GreaterOrEqual", "less_equal", True),
):
    _comparison(_op, _operation, _turned)


@_lowers("IsNaN")
def _is_nan(node: _Node, assembler: Assembler) -> Held:
    return _elementwise(assembler, f"is_nan_{node.held().dtype}", "bool", *node.inputs)


@_lowers("Where")
def _where(node: _Node, assembler: Assembler) -> Held:
    node.held()
    dtype = _dtype(next(value for value in node.inputs[1:] if value is not None))
    if dtype == "object":
        raise Unsupported("texts")
    return _elementwise(assembler, f"where_{np.dtype(dtype).itemsize}", dtype, *node.inputs)


def _folded(op: str, operation: str) -> None:
    """An operation of any number of tensors, two at a time."""

    def lowering(node: _Node, assembler: Assembler) -> Held:
        made, *rest = node.inputs
        if not rest:
            raise Unsupported("one tensor alone")
        for value in rest:
            dtype = _dtype(made)
            made = _elementwise(assembler, f"{operation}_{dtype}", dtype, made, value)
        assert isinstance(made, Held)
        return made

    _LOWERINGS[op] = lowering


for _op in ("Max", "Min"):
    _folded(_op, _name(_op))


@_lowers("Mean")
def _mean(node: _Node, assembler: Assembler) -> Held:
    total = node.held()
    for place in range(1, len(node.inputs)):
        total = _elementwise(assembler, f"add_{total.dtype}", total.dtype, total, node.held(place))
    share = Constant(np.array(1 / len(node.inputs), total.dtype))  # ONNX Runtime multiplies
    return _elementwise(assembler, f"mul_{total.dtype}", total.dtype, total, share)


@_lowers("Clip")
def _clip(node: _Node, assembler: Assembler) -> Held:
    made = node.held()
    if made.dtype != "int64":  # ONNX Runtime's way with what is no number is its own
        raise Unsupported("a clip of numbers with fractions")
    bounds = (*node.inputs[1:], None, None)[:2]
    for bound, operation in zip(bounds, ("max", "min"), strict=True):
        if bound is not None:
            made = _elementwise(assembler, f"{operation}_{made.dtype}", made.dtype, made, bound)
    return made


@_lowers("Identity")
def _identity(node: _Node, assembler: Assembler) -> Held:
    return node.held()


@_lowers("Cast")
def _cast(node: _Node, assembler: Assembler) -> Held:
    value, to = node.held(), dtype_of(node.attributes["to"])
    if value.dtype == to:
        return value
    return _elementwise(assembler, f"cast_{value.dtype}_{to}", to, value)


def _reshaped(value: Held, shape: tuple[int, ...]) -> Held:
    if prod(shape) != value.width:
        raise Unsupported("rows of other lengths")
    return Held(shape, value.where)


@_lowers("Squeeze")
def _squeeze(node: _Node, assembler: Assembler) -> Held:
    value = node.held()
    axes = {axis % (len(value.shape) + 1) for axis in node.numbers(1)}
    if 0 in axes:
        raise Unsupported("rows squeezed")
    return _reshaped(value, tuple(size for axis, size in enumerate(value.shape, 1) if axis not in axes))


@_lowers("Unsqueeze")
def _unsqueeze(node: _Node, assembler: Assembler) -> Held:
    value, axes = node.held(), node.numbers(1)
    places = {axis % (len(value.shape) + 1 + len(axes)) for axis in axes}
    if 0 in places or len(value.shape) + len(axes) > 2:
        raise Unsupported("a dimension before the rows, or many")
    rest = iter(value.shape)
    return _reshaped(
        value, tuple(1 if axis in places else next(rest) for axis in range(1, len(value.shape) + len(axes) + 1))
    )


@_lowers("Reshape")
def _reshape(node: _Node, assembler: Assembler) -> Held:
    value, (first, *shape) = node.held(), node.numbers(1)
    if first > 0 or not 0 <= len(shape) <= 2 or node.attributes.get("allowzero"):
        raise Unsupported("rows reshaped")
    if first == -1 and -1 in shape:
        raise Unsupported("two dimensions to be found")
    shape = [value.shape[axis] if size == 0 and axis < len(value.shape) else size for axis, size in enumerate(shape)]
    known = prod(size for size in shape if size != -1)
    return _reshaped(value, tuple(value.width // max(known, 1) if size == -1 else size for size in shape))


def _picked(value: Held, places: Sequence[int], assembler: Assembler, shape: tuple[int, ...]) -> Held:
    """Some elements of [rows, width]: where they lie, if they are equally far apart; else copied, run by run."""
    where = value.where
    steps = set(np.diff(places).tolist())
    if len(steps) <= 1 and all(step > 0 for step in steps):
        step = steps.pop() if steps else 1
        return Held(shape, Operand(where.register, where.start + places[0] * where.step, step * where.step))
    out = assembler.make(value.dtype, shape)
    start = 0
    while start < len(places):
        end = start + 1
        while end < len(places) and places[end] == places[end - 1] + 1:
            end += 1
        part = Operand(where.register, where.start + places[start] * where.step, where.step)
        assembler.copy(Held((end - start,), part), Operand(out.where.register, start))
        start = end
    return out


@_lowers("Slice")
def _slice(node: _Node, assembler: Assembler) -> Held:
    value = node.held()
    starts, ends = node.numbers(1), node.numbers(2)
    axes, steps = node.numbers(3, range(len(starts))), node.numbers(4, [1] * len(starts))
    if len(value.shape) != 1 or [axis % 2 for axis in axes] != [1]:
        raise Unsupported("a slice of rows")
    places = list(range(value.width))[starts[0] : ends[0] : steps[0]] if steps[0] > 0 else []
    if not places:
        raise Unsupported("no columns")
    return _picked(value, places, assembler, (len(places),))


@_lowers("Gather")
def _gather(node: _Node, assembler: Assembler) -> Held | Rows:
    axis = node.attributes.get("axis", 0)
    source = node.inputs[0]
    if isinstance(source, Held):
        if axis != 1 or len(source.shape) != 1:
            raise Unsupported("rows that are picked")
        places, wanted = node.numbers(1), node.inputs[1]
        if not isinstance(wanted, Constant) or wanted.values.ndim > 1 or not places:
            raise Unsupported("columns in several dimensions")
        return _picked(source, [place % source.width for place in places], assembler, wanted.values.shape)
    if not isinstance(source, Constant) or axis != 0 or source.values.ndim not in (1, 2):
        raise Unsupported("a table of another shape")
    number = node.held(1)
    if source.values.dtype == object:
        raise Unsupported("texts")
    if (len(number.shape), source.values.ndim, source.values.dtype.name) == (1, 2, "float32"):
        return Rows(source, number)
    return assembler.take(source, number)


@_lowers("Concat")
def _concat(node: _Node, assembler: Assembler) -> Held:
    values = [node.held(place) for place in range(len(node.inputs))]
    if node.attributes["axis"] not in (1, -1) or any(len(value.shape) != 1 for value in values):
        raise Unsupported("rows put together")
    out = assembler.make(values[0].dtype, (sum(value.width for value in values),))
    start = 0
    for value in values:
        own = value.where.register
        if value.whole and own.kind == "scratch" and own.inside is None:
            own.inside = (out.where.register, start)
        else:
            assembler.copy(value, Operand(out.where.register, start))
        start += value.width
    return out


@_lowers("ReduceSum")
def _reduce_sum(node: _Node, assembler: Assembler) -> Held:
    rows = node.inputs[0]
    if isinstance(rows, Rows):
        return _bag(rows, node, assembler)
    value = node.held()
    if len(value.shape) != 1 or [axis % 2 for axis in node.numbers(1)] != [1]:
        raise Unsupported("a sum of rows")
    # the order that numbers with fractions are added in is ONNX Runtime's own
    out = assembler.make(value.dtype, (1,) if node.attributes.get("keepdims", 1) else ())
    assembler.emit(f"sum_{value.dtype}", 1, out.where, value.where, extras=(value.width,))
    return out


def _bag(rows: Rows, node: _Node, assembler: Assembler) -> Held:
    """The sum of a list's rows of a table, weighted or not: an embedding that is pooled."""
    if [axis % 3 for axis in node.numbers(1)] != [1] or rows.number.dtype != "int64":
        raise Unsupported("a sum over numbers of a row")
    (length,), width = rows.number.shape, rows.table.values.shape[1]
    out = assembler.make("float32", (1, width) if node.attributes.get("keepdims", 1) else (width,))
    operands = [out.where, rows.number.where, Operand(assembler.table(rows.table), 0, 0)]
    if rows.weights is None:
        assembler.emit("bag_int64", width, *operands, extras=(len(rows.table.values), length, 0))
    else:
        passes = int(rows.table.finite)  # 0 times what is not is no number
        operands.append(rows.weights.where)
        assembler.emit("bag_weighted_int64", width, *operands, extras=(len(rows.table.values), length, passes))
    return out


@_lowers("LabelEncoder")
def _label_encoder(node: _Node, assembler: Assembler) -> Held:
    value = node.held()
    keys, labels = node.attributes.get("keys_int64s"), node.attributes.get("values_int64s")
    if keys is None or labels is None or value.dtype != "int64":
        raise Unsupported("labels of texts")
    slots, bits = _slots(np.array(keys, np.int64), np.array(labels, np.int64))
    out = assembler.make("int64", value.shape)
    table = Operand(assembler.constant(slots), 0, 0)
    default = node.attributes.get("default_int64", -1)
    assembler.emit("label_int64", out.width, out.where, value.where, table, extras=(bits, default))
    return out


def _slots(keys: Any, labels: Any) -> tuple[Any, int]:
    """A hash table with open addressing, at most half full: a key, its label and 1 in every slot that is taken."""
    bits = max(1, int(np.ceil(np.log2(2 * len(keys) + 1))))
    slots = np.zeros((1 << bits, 3), np.int64)
    first = ((keys.view(np.uint64) * np.uint64(_GOLDEN)) >> np.uint64(64 - bits)).astype(np.int64)
    for place, key, label in zip(first.tolist(), keys.tolist(), labels.tolist(), strict=True):
        while slots[place, 2] and slots[place, 0] != key:
            place = (place + 1) % len(slots)
        if not slots[place, 2]:  # of keys that stand twice ONNX Runtime takes the first
            slots[place] = (key, label, 1)
    return slots, bits
