"""Finds the converter of a net and runs it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tristage.errors import ArtifactError
from tristage.export.net.keras import KERAS
from tristage.export.net.model import Examples, Net, NetConverter
from tristage.export.net.onnx import ONNX
from tristage.export.net.saved_model import SAVED_MODEL
from tristage.export.net.torch import TORCH
from tristage.export.net.torch_script import TORCH_SCRIPT

__all__ = ["NETS", "example_rows", "find_converter", "read_net"]

# one converter per framework; others append their own
NETS: list[NetConverter] = [KERAS, TORCH, ONNX, SAVED_MODEL, TORCH_SCRIPT]


def read_net(step: str, artifact: Any, tables: Path | None = None, examples: Any = None) -> Net:
    """Read and convert a step's net.

    Args:
        step: the step's name.
        artifact: the net, or its file.
        tables: the folder that large tables are written to; None keeps them in memory.
        examples: some rows of every input, for a net that does not say itself what it reads: input -> array or tensor,
            [rows] or [rows, width]; or the .npz file of them.

    Raises:
        ArtifactError: nobody knows its kind, or its converter fails.
    """
    converter = find_converter(step, artifact)
    rows = example_rows(step, converter, examples)
    return converter.convert(Path(artifact) if isinstance(artifact, str) else artifact, f"step {step}", tables, rows)


def example_rows(step: str, converter: NetConverter, given: Any) -> Examples | None:
    """Example rows as arrays of two rows or more: of a single one exporters think that it is always one.

    Raises:
        ArtifactError: they cannot be read, or the converter wants none.
    """
    what = f"step {step}"
    if given is None:
        return None
    if not converter.by_example:
        raise ArtifactError(f"{what}: a net of {converter.framework} says itself what it reads; leave examples out")
    if isinstance(given, (str, Path)):
        try:
            with np.load(given, allow_pickle=False) as archive:
                given = dict(archive)
        except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:  # TypeError: a .npy's array
            raise ArtifactError(
                f"{what}: its examples {given} cannot be read ({error}); write them with numpy.savez, an array for "
                "each input",
                path=Path(given),
            ) from error
    if not isinstance(given, Mapping):
        raise ArtifactError(f"{what}: its examples are a {type(given).__name__}; give input name -> rows")
    rows = {str(name): np.asarray(getattr(values, "detach", lambda v=values: v)()) for name, values in given.items()}
    counts = {len(values) if values.ndim else 0 for values in rows.values()}
    if len(counts) != 1 or counts == {0}:
        raise ArtifactError(f"{what}: its examples must have as many rows for every input, one or more")
    return {name: np.concatenate([values, values]) if counts == {1} else values for name, values in rows.items()}


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
