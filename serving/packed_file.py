"""Files of the engines in C: mapped, so that instances share their pages, and checked before they are read."""

from __future__ import annotations

import mmap
import zlib
from pathlib import Path

__all__ = ["map_file", "map_packed"]

_CHECKSUM = slice(12, 16)  # where a packed file holds the CRC-32 of all that follows


def map_packed(path: Path, what: str) -> mmap.mmap:
    """Map a file that `tristage.export` packed.

    Args:
        path: the file.
        what: what it holds, such as "packed forest".

    Raises:
        ValueError: it is missing, cut short or changed; the message says so.
    """
    packed = map_file(path)
    with memoryview(packed) as view:
        if zlib.crc32(view[_CHECKSUM.stop :]) != int.from_bytes(view[_CHECKSUM], "little"):
            raise ValueError(f"{path} is damaged or no {what}; export it again")
    return packed


def map_file(path: Path) -> mmap.mmap:
    """Map a file; raises ValueError where it is missing or empty."""
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # mmap calls an empty file a ValueError
        raise ValueError(f"{path} cannot be opened: {error}") from error
