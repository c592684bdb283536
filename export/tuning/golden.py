"""The golden rows: their tensors, a repository's graphs run on them in this process, and those that stay."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.client.golden import EXPECTED, TOLERANCE
from tristage.errors import RepositoryError
from tristage.export.check import distance
from tristage.manifest import GOLDEN, Manifest
from tristage.serving.graph import GraphError, Runnable
from tristage.serving.interpreted import Interpreter
from tristage.serving.runner import open_folder
from tristage.serving.workflow_file import WORKFLOW_FILE, WorkflowFile

__all__ = ["Tensors", "golden_tensors", "off_golden", "open_model", "read_golden", "run"]

Tensors = dict[str, NDArray[Any]]


def read_golden(repository: Path, manifest: Manifest) -> Any:
    """The golden rows and what is expected of them, as a pyarrow.Table; None where there are none."""
    import pyarrow.parquet as pq

    table = pq.read_table(repository / GOLDEN) if GOLDEN in manifest.files else None
    return table if table is not None and table.num_rows else None


def golden_tensors(table: Any, manifest: Manifest) -> Tensors:
    """Golden rows as the tensors of a request, [rows, width] each."""
    from tristage.client.codec import encode

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lists are cut as they were at export
        return dict(encode(table, manifest.signature, unknown="ignore"))


def open_model(version: Path, trust: bool) -> Runnable:
    """A model without forests, opened as the server opens it.

    Args:
        version: its version's folder.
        trust: whether a saved workflow may be read, which runs what its pickle says.

    Raises:
        GraphError: it cannot be opened, or may not be.
    """
    file = version / WORKFLOW_FILE
    if trust and file.is_file():
        try:
            return Interpreter.open(WorkflowFile.read(file))
        except RepositoryError as error:
            raise GraphError(str(error)) from error
    return open_folder(version)


def run(graph: Runnable, tensors: Mapping[str, NDArray[Any]], most: int) -> Tensors:
    """Evaluate a graph on rows, so many at once; arguments and errors are those of `Graph.run`."""
    count = len(next(iter(tensors.values())))
    parts = [
        graph.run({tensor.name: tensors[tensor.name][start : start + most] for tensor in graph.inputs})
        for start in range(0, count, most)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def off_golden(table: Any, manifest: Manifest, tensors: Tensors) -> NDArray[np.bool_]:
    """[rows], whether an output is more than TOLERANCE, and what narrow weights do, from what is expected."""
    off = np.zeros(table.num_rows, bool)
    narrow = {} if manifest.weights is None else manifest.weights.outputs
    for column in manifest.signature.outputs:
        expected = table[EXPECTED + column.name].to_numpy()
        off |= distance(tensors[column.name][:, 0], expected) > TOLERANCE + narrow.get(column.name, 0.0)
    return off
