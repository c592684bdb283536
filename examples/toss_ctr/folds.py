"""Folds of rows, each with an NVTabular workflow of its own, and what it makes of rows: computed once, read by all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from examples.compact.features import columns, fit_workflow, padded, sizes_of, transform
from examples.toss_ctr.rows import CODES, NUMBERS, SEQUENCE

__all__ = ["Features", "Fold", "assign", "fit_fold"]


@dataclass(frozen=True)
class Features:
    """What a workflow makes of rows, as models read it.

    Attributes:
        codes: of the columns that name something, [rows, CODES] int64.
        numbers: normalised, [rows, NUMBERS] float32.
        seq: codes of the sequence, 0 behind the last, [rows, length] int16.
    """

    codes: NDArray[np.int64]
    numbers: NDArray[np.float32]
    seq: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.codes)

    def of_net(self, rows: Any = slice(None)) -> dict[str, NDArray[Any]]:
        """The inputs of a net for some of the rows."""
        return {"codes": self.codes[rows], "numbers": self.numbers[rows], "seq": self.seq[rows].astype(np.int64)}

    def of_forest(self, rows: Any = slice(None)) -> NDArray[np.float32]:
        """What a forest reads for some of the rows: codes, then numbers."""
        return np.concatenate([self.codes[rows].astype(np.float32), self.numbers[rows]], axis=1)


@dataclass(frozen=True)
class Fold:
    """One fold: what was fitted on the rows of all others.

    Attributes:
        number: of the fold.
        workflow: fitted.
        features: of all rows that are learned from, this fold's own among them.
        learn, held: numbers of the other folds' rows, and of its own.
        tables: rows of an embedding table for each of CODES, and for the sequence.
    """

    number: int
    workflow: Any
    features: Features
    learn: NDArray[np.int64]
    held: NDArray[np.int64]
    tables: tuple[int, ...]

    def read(self, rows: pd.DataFrame) -> Features:
        """What the workflow makes of raw rows."""
        return _features(transform(self.workflow, rows), self.features.seq.shape[1])


def assign(days: NDArray[Any], clicked: NDArray[Any], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of every row, at random, so that every (day, clicked) is spread over the folds evenly."""
    _, strata = np.unique(np.stack([days.astype(str), clicked.astype(str)]), axis=1, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(strata))
    order = order[np.argsort(strata.reshape(-1)[order], kind="stable")]
    made = np.empty(len(strata), np.int64)
    made[order] = np.arange(len(order)) % folds  # each stratum begins where the one before ended
    return made


def fit_fold(number: int, rows: pd.DataFrame, assigned: NDArray[np.int64], length: int, folder: Path) -> Fold:
    """Fit a fold's workflow on the other folds' rows, and transform all of them once.

    Args:
        number: of the fold.
        rows: raw rows.
        assigned: the fold of every row.
        length: integers of a sequence that are kept, the first ones.
        folder: takes the workflow's categories.
    """
    from nvtabular import ops

    where = folder / f"fold{number}"
    learn, held = np.flatnonzero(assigned != number), np.flatnonzero(assigned == number)
    codes = list(CODES) >> ops.Categorify(out_path=str(where / "codes"))
    numbers = list(NUMBERS) >> ops.FillMissing(fill_val=0) >> ops.Normalize()
    seq = [SEQUENCE] >> ops.ListSlice(0, length) >> ops.Categorify(out_path=str(where / "seq"))
    workflow = fit_workflow(codes + numbers + seq, rows.iloc[learn].reset_index(drop=True), where)
    made = transform(workflow, rows)
    tables = sizes_of(made, (*CODES, SEQUENCE))
    return Fold(number, workflow, _features(made, length), learn, held, tuple(tables))


def _features(made: pd.DataFrame, length: int) -> Features:
    return Features(
        columns(made, CODES, "int64"),
        columns(made, NUMBERS, "float32"),
        padded(made[SEQUENCE], length).astype(np.int16),
    )
