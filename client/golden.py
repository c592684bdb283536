"""Whether a served stack answers what the training libraries answered: the golden rows, replayed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.client._client import Client
from tristage.errors import ParityError, RepositoryError

__all__ = ["TOLERANCE", "Verification", "largest_difference", "verify"]

TOLERANCE = 1e-5
EXPECTED = "expected."  # what the names of the expected outputs begin with in golden.parquet


@dataclass(frozen=True)
class Verification:
    """What a replay of the golden rows found.

    Attributes:
        stack: the stack's name.
        url: the server that answered.
        rows: how many golden rows there are.
        tolerance: the largest absolute difference that passes.
        differences: output -> largest absolute difference; infinite where one side only is NaN.
        narrow: output -> by how much the export said that it differs for narrow weights, which passes beside the
            tolerance; empty where weights are as they were trained.
        exchanged: features steps that look up another table than the export's, whose answers the golden rows hold.
    """

    stack: str
    url: str
    rows: int
    tolerance: float
    differences: Mapping[str, float]
    narrow: Mapping[str, float] = field(default_factory=dict)
    exchanged: tuple[str, ...] = ()

    def allowed(self, output: str) -> float:
        """The largest difference of an output that passes."""
        return self.tolerance + self.narrow.get(output, 0.0)

    @property
    def largest(self) -> float:
        """The largest difference of all outputs."""
        return max(self.differences.values())

    @property
    def passed(self) -> bool:
        """Whether every difference is within what is allowed."""
        return all(value <= self.allowed(output) for output, value in self.differences.items())

    def check(self) -> None:
        """Do nothing where all is well.

        Raises:
            ParityError: a difference is above the tolerance.
        """
        if not self.passed:
            worst = max(self.differences, key=lambda name: self.differences[name] - self.allowed(name))
            why = " (what its narrow weights were measured to do is in it)" if self.narrow.get(worst) else ""
            then = "export the stack again, and compare the versions in its manifest.json"
            if self.exchanged:
                then = (
                    f"the table of {', '.join(self.exchanged)} is another than that of the export, which the golden "
                    "rows were answered with: export the stack with it to prove it"
                )
            raise ParityError(
                f'{self.url} does not answer what training did: "{worst}" differs by {self.differences[worst]:.3g}, '
                f"more than {self.allowed(worst):.6g}{why}; {then}"
            )


def verify(client: Client, repository: str | os.PathLike[str], *, tolerance: float = TOLERANCE) -> Verification:
    """Replay a repository's golden rows through the stack that a server serves.

    Args:
        client: a client of the server.
        repository: the repository that the server is supposed to serve; its manifest and golden rows are read here.
        tolerance: the largest absolute difference that passes. What the manifest says of narrow weights passes beside
            it: the golden rows expect what the training libraries answered with the weights as they were trained.

    Returns:
        The differences; `check()` raises where they are too large.

    Raises:
        RepositoryError: the repository is incomplete, or the server serves another export.
        ServerError: the server cannot be reached or refuses.
    """
    from tristage.manifest import GOLDEN, exchanged_tables, read_manifest

    root = Path(repository)
    manifest = read_manifest(root)
    expected_signature = manifest.signature
    signature = client.signature
    if signature != expected_signature:
        raise RepositoryError(
            f'"{signature.stack}" at {client.url} has other columns than the export in {root}; serve that one with '
            f"`tristage serve {root}`, or name the repository that is served"
        )
    table = _read(root / GOLDEN)
    inputs = [column.name for column in signature.inputs]
    outputs = [column.name for column in signature.outputs]
    missing = [name for name in [*inputs, *(EXPECTED + name for name in outputs)] if name not in table.column_names]
    if missing or not table.num_rows:
        fault = f"lacks {', '.join(missing)}" if missing else "holds no rows"
        raise RepositoryError(f"{root / GOLDEN} {fault}; export the stack again")
    answers = client.predict(table.select(inputs))
    differences = {
        name: largest_difference(_numbers(table.column(EXPECTED + name)), _numbers(answers.column(name)))
        for name in outputs
    }
    narrow = {} if manifest.weights is None else manifest.weights.outputs
    exchanged = exchanged_tables(root)
    return Verification(signature.stack, client.url, table.num_rows, tolerance, differences, narrow, exchanged)


def largest_difference(expected: NDArray[Any], answered: NDArray[Any]) -> float:
    """The largest absolute difference of two arrays of numbers; NaN equals NaN and is infinitely far from a number."""
    left, right = expected.astype(np.float64), answered.astype(np.float64)
    if expected.dtype.kind in "iub" and answered.dtype.kind in "iub":  # float64 has no room for all of them
        apart = np.where(expected == answered, 0.0, np.maximum(np.abs(left - right), 1.0))
        return float(np.max(apart, initial=0.0))
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(left - right))
    return float(np.max(np.where(np.isnan(apart), math.inf, apart), initial=0.0))


def _numbers(column: Any) -> NDArray[Any]:
    """A pyarrow.ChunkedArray of numbers, or of lists of them end to end."""
    whole = column.combine_chunks()
    return np.asarray(
        (whole.flatten() if hasattr(whole, "flatten") and column.type.num_fields else whole).to_numpy(
            zero_copy_only=False
        )
    )


def _read(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RepositoryError(f"the golden rows {path} cannot be read ({error}); export the stack again") from error
