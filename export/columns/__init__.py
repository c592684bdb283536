"""Parts of a graph that are computed column by column, compiled for the engine in `tristage.serving.columns`."""

from tristage.export.columns.choose import apart
from tristage.export.columns.pack import pack

__all__ = ["apart", "pack"]
