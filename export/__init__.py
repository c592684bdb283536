"""Trained artifacts become a Triton model repository: read, lower, place, check, write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tristage.export._export import (
        LAYOUTS,
        TARGETS,
        TOLERANCE,
        Exported,
        Fallback,
        Prepared,
        export,
        prepare,
        write,
    )

__all__ = ["LAYOUTS", "TARGETS", "TOLERANCE", "Exported", "Fallback", "Prepared", "export", "prepare", "write"]


def __getattr__(name: str) -> Any:
    # the exporter imports ONNX and converters; the command line's --help must not wait for them
    if name in __all__:
        from tristage.export import _export

        return getattr(_export, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
