"""A Faiss index that is asked between two graphs of a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.serving.graph import GraphError, Tensor
from tristage.serving.program_file import SearchCall

__all__ = ["Search", "each_alone"]


_NEVER = 2**31 - 1


@contextmanager
def each_alone(faiss: Any) -> Iterator[None]:
    """Have Faiss answer every query as it does alone, on one thread.

    Many queries it leaves to a matrix product, and the vectors that one query is compared with to several threads, both
    of which round otherwise: neighbours as near as rounding would change places with the rows that come together.
    """
    settings = faiss.cvar
    threads, fewest = faiss.omp_get_max_threads(), settings.distance_compute_blas_threshold
    faiss.omp_set_num_threads(1)
    settings.distance_compute_blas_threshold = _NEVER
    try:
        yield
    finally:
        settings.distance_compute_blas_threshold = fewest
        faiss.omp_set_num_threads(threads)


@dataclass(frozen=True)
class Search:
    """An opened index; evaluated as a Graph is.

    Attributes:
        faiss: the module.
        index: Faiss's; its large arrays are mapped, so that instances share them, where it can map them.
        call: what is read and made.
    """

    faiss: Any
    index: Any
    call: SearchCall

    @classmethod
    def open(cls, folder: Path, call: SearchCall) -> Search:
        """Open the file that a call names.

        Raises:
            GraphError: Faiss is not installed, or cannot read it.
        """
        path = folder / call.index
        try:
            import faiss
        except ImportError:
            raise GraphError(
                f"{path} is a Faiss index, and Faiss is not installed here: pip install 'tristage[retrieval]'"
            ) from None
        try:
            index = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
        except RuntimeError as error:
            raise GraphError(f"{path} cannot be read by Faiss {faiss.__version__}: {error}") from error
        return cls(faiss, index, call)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What it reads."""
        return (Tensor(self.call.queries, "TYPE_FP32", np.dtype(np.float32), self.index.d),)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What it makes."""
        return (
            Tensor(self.call.items, "TYPE_INT64", np.dtype(np.int64), self.call.k),
            Tensor(self.call.scores, "TYPE_FP32", np.dtype(np.float32), self.call.k),
        )

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer rows.

        Raises:
            GraphError: the queries are not as wide as the index's vectors.
        """
        queries = np.ascontiguousarray(tensors[self.call.queries], np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.index.d:
            raise GraphError(f"{self.call.queries} must be of shape [rows, {self.index.d}], not {list(queries.shape)}")
        items = np.empty((len(queries), self.call.k), np.int64)
        scores = np.empty((len(queries), self.call.k), np.float32)
        with each_alone(self.faiss):
            self.index.search(queries, self.call.k, D=scores, I=items)
        return {self.call.items: items, self.call.scores: scores}
