"""A packed GRU or LSTM layer, by the header that `tristage.export.rewrites.pack` wrote."""

from __future__ import annotations

import struct
from pathlib import Path

from tristage.errors import RepositoryError
from tristage.export.size.work import Work

__all__ = ["recurrence_work"]

_GATES = {0: 3, 1: 3, 2: 4}  # a GRU in two kinds, an LSTM


def recurrence_work(path: Path, steps: int) -> tuple[Work, int]:
    """The work of so many steps, and how wide a state is.

    Raises:
        RepositoryError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(16)
            _, kind, width, rows, _, _ = struct.unpack("<6Q", stream.read(48))
        gates = _GATES[kind] * width
    except (OSError, struct.error, KeyError) as error:
        raise RepositoryError(f"{path} cannot be read ({error!r}); export the stack again") from error
    work = Work(
        macs=steps * width * gates,
        embedding_rows=steps if rows else 0,
        table_bytes=4 * rows * gates,
    )
    return work, width
