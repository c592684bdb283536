"""A repository of the layout `fused`, packed for a machine where tristage is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.parts import pack
from tristage.client.golden import EXPECTED
from tristage.errors import RepositoryError
from tristage.export.size.repository import sizes_of
from tristage.export.tuning.golden import golden_tensors, read_golden
from tristage.manifest import read_manifest

__all__ = ["bundle"]


def bundle(repository: Path, to: Path, size: int) -> str:
    """Write the parts; says what was written.

    Raises:
        RepositoryError: it is of another layout, or has no golden rows.
    """
    manifest = read_manifest(repository)
    models = set(manifest.models.values())
    golden = read_golden(repository, manifest)
    if len(models) > 1 or golden is None:
        raise RepositoryError(f"{repository} needs the layout fused and golden rows; export the stack so")
    rows = {name: _fixed(array) for name, array in golden_tensors(golden, manifest).items()}
    expected = {column.name: golden[EXPECTED + column.name].to_numpy() for column in manifest.signature.outputs}
    about = {
        "stack": manifest.stack,
        "tristage": manifest.versions["tristage"],
        "versions": dict(manifest.versions),
        "sizes": sizes_of(repository, manifest).document(),
    }
    count = pack(repository / models.pop() / "1", rows, expected, about, to, size)
    return f"{count} parts of at most {size:,} bytes, {len(golden):,} golden rows: {to}"


def _fixed(array: NDArray[Any]) -> NDArray[Any]:
    """Texts as bytes of one length, since arrays of objects are pickles."""
    if array.dtype != object:
        return array
    flat = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel().tolist()]
    if any(value.endswith(b"\0") for value in flat):
        raise RepositoryError("a text of the golden rows ends with a zero byte, which cannot be packed")
    return np.array(flat, "S").reshape(array.shape)
