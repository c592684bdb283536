"""Finds the converter of a net and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tristage.errors import ArtifactError
from tristage.export.net.keras import KERAS
from tristage.export.net.model import Net, NetConverter
from tristage.export.net.onnx import ONNX
from tristage.export.net.saved_model import SAVED_MODEL
from tristage.export.net.torch import TORCH
from tristage.export.net.torch_script import TORCH_SCRIPT

__all__ = ["NETS", "find_converter", "read_net"]

# one converter per framework; others append their own
NETS: list[NetConverter] = [KERAS, TORCH, ONNX, SAVED_MODEL, TORCH_SCRIPT]


def read_net(step: str, artifact: Any, tables: Path | None = None) -> Net:
    """Read and convert a step's net.

    Args:
        step: the step's name.
        artifact: the net, or its file.
        tables: the folder that large tables are written to; None keeps them in memory.

    Raises:
        ArtifactError: nobody knows its kind, or its converter fails.
    """
    converter = find_converter(step, artifact)
    return converter.convert(Path(artifact) if isinstance(artifact, str) else artifact, f"step {step}", tables)


def find_converter(step: str, artifact: Any) -> NetConverter:
    """The converter for a net, by its file's suffix or its class; opens nothing.

    Raises:
        ArtifactError: there is no such file, or nobody knows its kind.
    """
    what = f"step {step}"
    if isinstance(artifact, (str, Path)):
        path = Path(artifact)
        for converter in NETS:
            file = path / converter.marker
            if path.suffix in converter.suffixes or (converter.marker and file.is_file()):
                if not file.is_file():
                    raise ArtifactError(f"{what}: there is no file {file}", path=path)
                return converter
        known = ", ".join(f"{'/'.join(converter.suffixes)} ({converter.framework})" for converter in NETS)
        raise ArtifactError(f"{what}: {path} is of no known kind of net; known are {known}", path=path)
    packages = {cls.__module__.split(".")[0] for cls in type(artifact).__mro__}
    for converter in NETS:
        if packages.intersection(converter.modules):
            return converter
    known = ", ".join(converter.framework for converter in NETS)
    raise ArtifactError(f"{what}: a {type(artifact).__name__} is no net of a known framework; known are {known}")
