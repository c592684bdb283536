"""Measures every engine on every forest of a repository, and writes down who answers how many rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tristage.export.tuning._tune import BATCHES, tune

__all__ = ["BATCHES", "tune"]


def __getattr__(name: str) -> Any:
    # it imports ONNX; the command line's --help must not wait for it
    if name in __all__:
        from tristage.export.tuning import _tune

        return getattr(_tune, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
