"""Where the compiled extension of an engine's package is found."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

__all__ = ["find_extension"]


def find_extension(path: list[str], extension: str) -> None:
    """Have a package find its extension, which in a checkout lies with the tristage that is installed.

    Args:
        path: the package's `__path__`, which is added to where the extension is not beside the package's modules.
        extension: its name.
    """
    here = Path(path[0])
    if any(here.glob(f"{extension}*.so")):
        return
    with contextlib.suppress(PackageNotFoundError):
        path.append(str(distribution("tristage").locate_file(f"tristage/serving/{here.name}")))
