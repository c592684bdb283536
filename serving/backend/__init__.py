"""Triton's backend `tristage`: runs the models of a repository inside tritonserver; see backend.c."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FOLDER", "LIBRARY"]

FOLDER = Path(__file__).parent
LIBRARY = "libtriton_tristage.so"  # missing where tristage was installed without a C compiler
