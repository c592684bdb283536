"""A straight line of the columns engine's instructions, as it is put together: registers hold columns of rows.

A register's elements of a row lie side by side, so that parts of a tensor are read where they lie, and what is put side
by side is computed in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.serving.columns import operations

__all__ = ["Assembler", "Constant", "Held", "Instruction", "Operand", "Register", "Rows", "Unsupported"]

_BLOCK = 1 << 24  # bytes looked at at once
_WIDEST = 512  # elements a row; what is wider is copied no faster here than by ONNX Runtime


class Unsupported(Exception):
    """A node that the engine has no operations for; ONNX Runtime computes it."""


@dataclass(frozen=True)
class Constant:
    """A constant of the graph: its values, and the file beside the graph that holds them, where they are large."""

    values: NDArray[Any]
    file: str | None = None

    @property
    def finite(self) -> bool:
        """Whether its values are all finite."""
        step = max(1, _BLOCK // max(1, self.values.nbytes // max(1, len(self.values))))
        return all(np.isfinite(self.values[at : at + step]).all() for at in range(0, len(self.values), step))


@dataclass(eq=False)
class Register:
    """Elements that instructions read or fill.

    Attributes:
        dtype: the dtype of all.
        width: elements a row; of a constant, all.
        kind: "scratch", "constant", "input", "output" or "table".
        number: which input or output; of a constant, where in the blob; of a table, which file.
        inside: the register whose rows hold it, and at which element; None where it stands alone.
    """

    dtype: str
    width: int
    kind: str = "scratch"
    number: int = 0
    inside: tuple[Register, int] | None = None

    def place(self) -> tuple[Register, int]:
        """The register that stands alone and holds it, and the element of a row where it begins there."""
        if self.inside is None:
            return self, 0
        outer, start = self.inside
        root, before = outer.place()
        return root, before + start


@dataclass(frozen=True)
class Operand:
    """Elements of a register: the first, and how many the next one is behind it; 0 where all are the same."""

    register: Register
    start: int = 0
    step: int = 1


@dataclass(frozen=True)
class Held:
    """A tensor.

    Attributes:
        shape: of a row: () of [rows], (width,), or (length, width).
        where: its elements.
    """

    shape: tuple[int, ...]
    where: Operand

    @property
    def dtype(self) -> str:
        """Its dtype's name."""
        return self.where.register.dtype

    @property
    def width(self) -> int:
        """Elements a row."""
        return prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether it is all of its register, in order."""
        return (self.where.start, self.where.step, self.width) == (0, 1, self.where.register.width)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a table of float32, [rows, length, width], that are taken when it is known what for.

    Attributes:
        table: the table, [any, width].
        number: which of its rows, [rows, length].
        weights: what each is multiplied by, [rows, length, 1]; None for nothing.
    """

    table: Constant
    number: Held
    weights: Held | None = None

    @property
    def dtype(self) -> str:
        """Its dtype's name."""
        return "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row."""
        return (*self.number.shape, self.table.values.shape[1])


@dataclass(frozen=True)
class Instruction:
    """An operation: what it makes, then what it reads."""

    operation: str
    width: int
    operands: tuple[Operand, ...]
    extras: tuple[int, ...] = ()


@dataclass
class Assembler:
    """Takes instructions, and what they read.

    Attributes:
        inputs: in order.
        instructions: in order.
        blob: the constants, each at a multiple of its elements' size.
        tables: the files of the large tables that are read, in order, and the bytes they must have.
    """

    inputs: list[Register] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    blob: bytearray = field(default_factory=bytearray)
    tables: dict[str, int] = field(default_factory=dict)
    _constants: dict[Any, Register] = field(default_factory=dict)
    _taken: dict[Rows, Held] = field(default_factory=dict)
    _known: frozenset[str] = frozenset(operations())

    def input(self, dtype: str, shape: tuple[int, ...]) -> Held:
        """Declare the next input."""
        register = Register(dtype, prod(shape), "input", len(self.inputs))
        self.inputs.append(register)
        return Held(shape, Operand(register))

    def emit(self, operation: str, width: int, *operands: Operand, extras: Sequence[int] = ()) -> None:
        """Add an instruction; raises Unsupported where the engine has no such operation."""
        if operation not in self._known:
            raise Unsupported(operation)
        self.instructions.append(Instruction(operation, width, operands, tuple(extras)))

    def make(self, dtype: str, shape: tuple[int, ...]) -> Held:
        """A register to fill; raises Unsupported where it would be very wide."""
        if prod(shape) > _WIDEST:
            raise Unsupported(f"{prod(shape)} elements a row")
        return Held(shape, Operand(Register(dtype, prod(shape))))

    def constant(self, values: NDArray[Any]) -> Register:
        """Put values into the constants, once."""
        flat = np.ascontiguousarray(values)
        key = (flat.dtype.name, flat.tobytes())
        if key not in self._constants:
            self.blob += bytes(-len(self.blob) % 8)
            self._constants[key] = Register(flat.dtype.name, flat.size, "constant", len(self.blob))
            self.blob += key[1]
        return self._constants[key]

    def table(self, constant: Constant) -> Register:
        """What rows are taken from: a file that is mapped where it is large."""
        if constant.file is None:
            return self.constant(constant.values)
        self.tables[constant.file] = max(constant.values.nbytes, self.tables.get(constant.file, 0))
        number = list(self.tables).index(constant.file)
        return Register(constant.values.dtype.name, constant.values.size, "table", number)

    def taken(self, rows: Rows) -> Held:
        """Rows that are needed as they are; raises Unsupported where they would be very wide."""
        if rows.weights is not None:
            raise Unsupported("weighted rows")
        if rows not in self._taken:
            self._taken[rows] = self.take(rows.table, rows.number)
        return self._taken[rows]

    def take(self, table: Constant, number: Held) -> Held:
        """Rows of a table, or elements of a list."""
        each = table.values.shape[1:]
        if len(number.shape) + len(each) > 2 or not prod(each):
            raise Unsupported("a table's rows in several dimensions")
        out = self.make(table.values.dtype.name, number.shape + each)
        self.emit(
            f"gather_{number.dtype}",
            number.width,
            Operand(out.where.register, 0, prod(each)),
            number.where,
            Operand(self.table(table), 0, 0),
            extras=(len(table.values), prod(each) * table.values.itemsize),
        )
        return out

    def copy(self, held: Held, to: Operand) -> None:
        """Copy a tensor."""
        self.emit(f"copy_{np.dtype(held.dtype).itemsize}", held.width, to, held.where)
