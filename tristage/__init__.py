"""tristage: a trained, stacked recommender becomes an NVIDIA Triton ensemble that answers what training answered."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# In a checkout the subpackages lie beside this folder, not in it.
_here = Path(__file__).parent
if not (_here / "client").is_dir():
    __path__.append(str(_here.parent))

try:
    __version__ = version("tristage")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
