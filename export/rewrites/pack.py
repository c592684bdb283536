"""GRU and LSTM layers packed for the engine in `serving/recurrence`, whose engine.h says how a file is laid out."""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.export.rewrites.cell import Cell, Floats
from tristage.manifest import sha256

__all__ = ["pack"]

_LANES, _PANEL, _HEADER = 16, 64, 128


def pack(
    cell: Cell, folder: Path, *, backwards: bool, zeros: bool, rows: int = 0, table: Iterable[NDArray[Any]] = ()
) -> str:
    """Write a layer to a file of a folder, whose name tells its content; returns the name.

    Args:
        cell: the weights; of its inputs, only the table knows.
        folder: where to.
        backwards: whether the steps are taken from the last on.
        zeros: whether a step that the mask passes over shows zeros; else the state as it was.
        rows: of the table.
        table: projected inputs, [rows, gates * width] float32, in blocks; none where they are given with every call.
    """
    width, gates = cell.width, cell.recurrent.shape[1] // cell.width
    kind = 2 if cell.kind == "LSTM" else 0 if cell.reset_after else 1
    recurrent = np.split(cell.recurrent, gates, axis=1)
    padded = -(-width // _LANES) * _LANES
    late = np.zeros(padded, np.float32)
    if kind == 0:
        late[:width] = cell.recurrent_bias[2 * width :]
    products = [recurrent[:2], recurrent[2:]] if kind == 1 else [recurrent]
    with tempfile.NamedTemporaryFile(dir=folder, prefix="scratch-", delete=False) as file:
        file.write(b"\0" * _HEADER)
        for array in (*(_panels(product, padded) for product in products), late, *table):
            file.write(np.ascontiguousarray(array, "<f4").data)
        file.write(b"\0" * (-file.tell() % 64))
        size = file.tell()
        file.seek(16)
        rest = struct.pack("<6Q", size, kind, width, rows, backwards, zeros)
        file.write(rest)
    path = Path(file.name)
    with path.open("r+b") as stream:
        checksum = 0
        stream.seek(16)
        while block := stream.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
        stream.seek(0)
        stream.write(struct.pack("<8sII", b"tristrnn", 1, checksum))
    name = f"recurrence-{sha256(path)[:16]}.bin"
    path.rename(folder / name)
    return name


def _panels(gates: list[Floats], padded: int) -> NDArray[np.float32]:
    """[width, columns] in panels of so many columns that a tile's sums stay in registers: [panels, width, 64]."""
    width = len(gates[0])
    columns = -(-len(gates) * padded // _PANEL) * _PANEL
    wide = np.zeros((width, columns), np.float32)
    for number, gate in enumerate(gates):
        wide[:, number * padded : number * padded + width] = gate
    return wide.reshape(width, -1, _PANEL).transpose(1, 0, 2)
