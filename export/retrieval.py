"""Retrieval: a Faiss index is kept as it is, and served by Faiss: what it answers one query alone, on one thread."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import Column
from tristage.errors import ArtifactError
from tristage.export.net.outputs import NetOutput, Part, column_dtypes, column_names, parts_of
from tristage.export.onnx_graph import ENGINE_DOMAIN, GraphBuilder
from tristage.manifest import sha256
from tristage.serving.search import each_alone

__all__ = ["QUERY", "SEARCH_NODE", "Retrieval", "find_index", "read_index"]

QUERY = "query"
SEARCH_NODE = "Search"  # the operator, of ENGINE_DOMAIN, that stands for an index


@dataclass(frozen=True)
class Retrieval:
    """An index that answers `k` neighbours of a row.

    Attributes:
        file: the index's file, in the folder of large tables.
        faiss: the module.
        index: the same, opened by Faiss: what parity is with.
        k: neighbours that are answered.
        compared: vectors that every row is compared with; None where the search decides.
    """

    file: str
    faiss: Any
    index: Any
    k: int
    compared: int | None

    @property
    def width(self) -> int:
        """Numbers of a query."""
        return int(self.index.d)

    @property
    def outputs(self) -> tuple[NetOutput, ...]:
        """What it answers: the neighbours' ids, and how near they are."""
        return NetOutput("item", self.k, "int64"), NetOutput("score", self.k, "float32")

    @property
    def parts(self) -> tuple[Part, ...]:
        """A tensor of ids, and one of scores."""
        return parts_of(self.outputs)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns, in order."""
        return tuple(map(Column, column_names(self.outputs, ()), column_dtypes(self.outputs)))

    def predict(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Faiss's own answers, asked query by query: ids [rows, k] int64 and scores [rows, k] float32."""
        queries = np.ascontiguousarray(feeds[QUERY], np.float32)
        items = np.empty((len(queries), self.k), np.int64)
        scores = np.empty((len(queries), self.k), np.float32)
        with each_alone(self.faiss):
            for row in range(len(queries)):
                scores[row], items[row] = (found[0] for found in self.index.search(queries[row : row + 1], self.k))
        return [items, scores]

    def lower(self, graph: GraphBuilder, feeds: Mapping[str, str], step: str) -> tuple[str, ...]:
        """The node that stands for it; the names of the tensors that it makes, one for each part."""
        said = {} if self.compared is None else {"compared": self.compared}
        return graph.add_many(
            SEARCH_NODE,
            feeds[QUERY],
            outputs=2,
            domain=ENGINE_DOMAIN,
            name=step,
            index=self.file,
            queries=self.width,
            width=self.k,
            dtypes=[output.dtype for output in self.outputs],
            **said,
        )


def find_index(step: str, artifact: Any) -> None:
    """Check that a step's index is there and that Faiss is.

    Raises:
        ArtifactError: Faiss is not installed, there is no such file, or it is no index.
    """
    faiss = _faiss(step)
    if isinstance(artifact, (str, Path)):
        if not Path(artifact).is_file():
            raise ArtifactError(
                f"step {step}: there is no file {artifact}; write the index there with faiss.write_index",
                path=Path(artifact),
            )
    elif not isinstance(artifact, faiss.Index):
        raise ArtifactError(
            f"step {step}: a {type(artifact).__name__} is no faiss.Index of float vectors; give one, or the file that "
            "faiss.write_index wrote"
        )


def read_index(step: str, artifact: Any, k: int, tables: Path) -> Retrieval:
    """Read an index and put a copy of its file into a folder.

    Args:
        step: the step's name.
        artifact: the file, or the index itself.
        k: neighbours to answer.
        tables: the folder of large tables.

    Raises:
        ArtifactError: Faiss cannot read or write it, or it holds no vectors.
    """
    faiss = _faiss(step)
    find_index(step, artifact)
    path = Path(artifact) if isinstance(artifact, (str, Path)) else None
    what = f"step {step}: {path or 'its index'}"
    with tempfile.NamedTemporaryFile(dir=tables, prefix="scratch-", delete=False) as scratch:
        copy = Path(scratch.name)
    try:
        if path is None:
            index = artifact
            faiss.write_index(index, str(copy))
        else:
            shutil.copyfile(path, copy)
            index = faiss.read_index(str(copy))
    except RuntimeError as error:  # Faiss's own, with a line of C++ each
        copy.unlink(missing_ok=True)
        raise ArtifactError(
            f"{what} cannot be {'read' if path else 'written'} by Faiss {faiss.__version__} ({_reason(error)}); give "
            "an index of float vectors on the CPU, as faiss.write_index writes it",
            path=path,
        ) from error
    if index.ntotal == 0:
        copy.unlink()
        raise ArtifactError(f"{what} holds no vectors; add the items before it is exported", path=path)
    file = f"index-{sha256(copy)[:16]}.faiss"
    copy.replace(tables / file)
    return Retrieval(file, faiss, index, k, _compared(faiss, index))


def _compared(faiss: Any, index: Any) -> int | None:
    inner = faiss.downcast_index(index)
    while isinstance(inner, (faiss.IndexIDMap, faiss.IndexIDMap2)):
        inner = faiss.downcast_index(inner.index)
    return int(index.ntotal) if isinstance(inner, faiss.IndexFlat) else None


def _faiss(step: str) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ArtifactError(
            f"step {step} searches a Faiss index, and Faiss is not installed here: pip install 'tristage[retrieval]'"
        ) from error
    return faiss


def _reason(error: RuntimeError) -> str:
    """What Faiss says, without where in its sources it does."""
    return str(error).rpartition(": ")[2].strip() or str(error)
