"""A part of a graph packed for the engine in `serving/columns`, whose engine.h says how a file is laid out."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tristage.export.columns.assemble import Assembler, Constant, Held, Instruction, Operand, Register, Rows
from tristage.export.columns.lower import lower
from tristage.export.onnx_graph import dtype_of
from tristage.export.tables import read_tensor
from tristage.serving.columns import operations
from tristage.serving.program_file import ColumnsCall, Sides

__all__ = ["constant_of", "pack", "row_of"]

_BLOCK = 64  # rows at once
_SCRATCH, _CONSTANTS, _INPUTS = 0, 1, 2
_OPERANDS, _EXTRAS = 4, 4


def constant_of(tensor: TensorProto, folder: Path | None = None) -> Constant:
    """A graph's constant; without the folder of those in files, of theirs only the types and shapes are right."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return Constant(numpy_helper.to_array(tensor))
    said = {entry.key: entry.value for entry in tensor.external_data}
    assert not int(said.get("offset", 0)), "a table has a file of its own"
    if folder is not None:
        return Constant(read_tensor(tensor, folder), said["location"])
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return Constant(np.broadcast_to(np.zeros((), dtype), tuple(tensor.dims)), said["location"])


def row_of(value: onnx.ValueInfoProto | None) -> tuple[str, tuple[int, ...]] | None:
    """A tensor's dtype and the shape of its rows; None where it has none that the engine holds."""
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    kind = value.type.tensor_type
    if kind.elem_type in (TensorProto.STRING, TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return None
    rows, *rest = kind.shape.dim or [None]
    if rows is None or rows.HasField("dim_value") or not all(dim.dim_value > 0 for dim in rest):
        return None
    return dtype_of(kind.elem_type), tuple(dim.dim_value for dim in rest)


def pack(model: onnx.ModelProto, path: Path, graph: str) -> ColumnsCall:
    """Write a model as a packed program.

    Args:
        model: nodes that `apart` gave to the engine; the types and shapes of its inputs and outputs.
        path: the file, beside those of the model's tables.
        graph: the model's own file, which the call names.
    """
    assembler = Assembler()
    known: dict[str, Held | Rows | Constant] = {
        tensor.name: constant_of(tensor, path.parent) for tensor in model.graph.initializer
    }
    reads: dict[str, tuple[str, tuple[int, ...]]] = {}
    for value in model.graph.input:
        row = row_of(value)
        assert row is not None, "what the engine reads it can hold"
        reads[value.name], known[value.name] = row, assembler.input(*row)
    for node in model.graph.node:
        known[node.output[0]] = lower(node, [known[name] if name else None for name in node.input], assembler)
    makes: Sides = {}
    for number, value in enumerate(model.graph.output):
        held = known[value.name]
        held = assembler.taken(held) if isinstance(held, Rows) else held
        assert isinstance(held, Held)
        makes = {**makes, value.name: (held.dtype, held.shape)}
        _emit(held, number, assembler)
    outputs = [Register(dtype, int(np.prod(shape, dtype=int)), "output") for dtype, shape in makes.values()]
    path.write_bytes(_bytes(assembler, outputs))
    return ColumnsCall(path.name, graph, tuple(assembler.tables), reads, makes)


def _emit(held: Held, number: int, assembler: Assembler) -> None:
    """Have an output filled: in its place, if it lies nowhere else."""
    own = held.where.register
    if held.whole and own.kind == "scratch" and own.inside is None:
        own.kind, own.number = "output", number
    else:
        assembler.copy(held, Operand(Register(held.dtype, held.width, "output", number)))


def _bytes(assembler: Assembler, outputs: list[Register]) -> bytes:
    """The file."""
    sides = [*assembler.inputs, *outputs]
    places, scratch = _allocate(assembler.instructions)
    first = {"input": _INPUTS, "output": _INPUTS + len(assembler.inputs), "table": _INPUTS + len(sides)}

    def operand(its: Operand) -> bytes:
        register, before = its.register.place()
        size = np.dtype(register.dtype).itemsize
        offset, stride = (before + its.start) * size, register.width * size
        if register.kind == "scratch":
            return struct.pack("<IIQQ", _SCRATCH, its.step * size, places[register] + offset, stride)
        if register.kind == "constant":
            return struct.pack("<IIQQ", _CONSTANTS, its.step * size, register.number + offset, 0)
        if register.kind == "table":
            return struct.pack("<IIQQ", first["table"] + register.number, 0, offset, 0)
        return struct.pack("<IIQQ", first[register.kind] + register.number, its.step * size, offset, stride)

    numbers = {name: number for number, name in enumerate(operations())}
    body = b"".join(struct.pack("<II", np.dtype(side.dtype).itemsize, side.width) for side in sides)
    body += struct.pack(f"<{len(assembler.tables)}Q", *assembler.tables.values())
    for each in assembler.instructions:
        body += struct.pack("<II", numbers[each.operation], each.width)
        body += b"".join(map(operand, each.operands)) + bytes(24 * (_OPERANDS - len(each.operands)))
        body += struct.pack(f"<{_EXTRAS}q", *each.extras, *[0] * (_EXTRAS - len(each.extras)))
    body += bytes(-len(body) % 64) + bytes(assembler.blob)
    all_names = zlib.crc32("".join(f"{name}\n" for name in operations()).encode())
    counts = (all_names, len(assembler.inputs), len(outputs), len(assembler.tables), len(assembler.instructions))
    rest = struct.pack("<Q6I2Q", 64 + len(body), *counts, _BLOCK, scratch, len(assembler.blob)) + body
    return struct.pack("<8sII", b"tristcol", 1, zlib.crc32(rest)) + rest


def _allocate(instructions: Iterable[Instruction]) -> tuple[dict[Register, int], int]:
    """A place in the scratch space for every register that needs one, and the size of it all, in bytes.

    A place is given to another register behind the last instruction that reads the one that had it.
    """
    lines = list(instructions)
    last: dict[Register, int] = {}
    used = [[operand.register.place()[0] for operand in line.operands] for line in lines]
    for number, registers in enumerate(used):
        last.update(dict.fromkeys((register for register in registers if register.kind == "scratch"), number))
    places: dict[Register, int] = {}
    free: list[tuple[int, int]] = []  # size, place
    size = 0
    for number, registers in enumerate(used):
        for register in registers:
            if register.kind != "scratch" or register in places:
                continue
            needs = -(-register.width * np.dtype(register.dtype).itemsize * _BLOCK // 64) * 64
            fitting = min((entry for entry in free if entry[0] >= needs), default=None)
            if fitting is None:
                places[register], size = size, size + needs
                continue
            free.remove(fitting)
            places[register] = fitting[1]
            if fitting[0] > needs:
                free.append((fitting[0] - needs, fitting[1] + needs))
        for register in dict.fromkeys(registers):
            if last.get(register) == number:
                held = -(-register.width * np.dtype(register.dtype).itemsize * _BLOCK // 64) * 64
                free.append((held, places[register]))
    return places, size
