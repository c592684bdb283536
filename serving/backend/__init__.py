"""Triton's backend `tristage`: runs the models of a repository inside tritonserver; see backend.c."""

from __future__ import annotations

from pathlib import Path

from tristage.serving.compiled import find_extension

__all__ = ["MAX_QUEUE", "find_library"]

MAX_QUEUE = "max_queue"  # parameter of a model's configuration: requests that may wait for it; more are refused
_LIBRARY = "libtriton_tristage"

find_extension(__path__, _LIBRARY)


def find_library() -> Path | None:
    """The backend as Triton loads it; None where tristage was installed without a C compiler."""
    return next((path for folder in __path__ if (path := Path(folder, f"{_LIBRARY}.so")).is_file()), None)
