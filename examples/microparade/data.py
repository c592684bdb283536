"""Rows, what the workflow made of them, and what a net reads: of the rows to learn from and of any others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from examples.compact.features import columns, padded
from examples.microparade import TARGETS
from examples.microparade.awkward import awkward_rows
from examples.microparade.features import FEATURES, RAW, answers, fit, learned
from examples.microparade.rows import draw, engaged, past_tokens
from examples.microparade.sizes import Sizes
from tristage.stack import ListInput

__all__ = ["Data", "inputs", "prepare", "reads"]


@dataclass(frozen=True)
class Data:
    """What there is to learn from, and to be compared on.

    Attributes:
        sizes: how large everything is.
        workflow: fitted.
        inputs: what a net reads of the rows to learn from, by name.
        engaged: 0 or 1, [rows, 4].
        held: rows that are not learned from, with their targets.
        golden: the file of them, without.
        awkward: see `examples.compact.system.Trained`.
    """

    sizes: Sizes
    workflow: Any
    inputs: Mapping[str, NDArray[Any]]
    engaged: NDArray[np.float32]
    held: pd.DataFrame
    golden: Path
    awkward: pd.DataFrame

    def read(self, rows: pd.DataFrame) -> dict[str, NDArray[Any]]:
        """What a net reads of raw rows that are to be answered."""
        return _net_inputs(rows, answers(self.workflow, rows), self.sizes)


def prepare(sizes: Sizes, folder: Path) -> Data:
    """Draw rows, fit the workflow, and set golden rows aside; a folder takes them and what the workflow fits."""
    drawn = draw(sizes)
    learn, held = drawn.iloc[: sizes.rows], drawn.iloc[sizes.rows :].reset_index(drop=True)
    workflow = fit(learn, folder / "fitted")
    raw = [*RAW, *inputs(sizes)]
    golden = folder / "golden.parquet"
    held[raw].to_parquet(golden)
    read = _net_inputs(learn, learned(workflow, learn), sizes)
    wanted = learn[list(TARGETS)].to_numpy(np.float32)
    return Data(sizes, workflow, read, wanted, held, golden, awkward_rows(held[raw], sizes))


def reads(sizes: Sizes) -> dict[str, tuple[str, ...]]:
    """The net's inputs, and the columns that each of them is."""
    made = {
        "tokens": ("text_tokens",),
        "past": tuple(past_tokens(sizes.past)),
        "there": ("mask_hist",),
        "seconds": ("interaction_time_hist",),
        "numbers": tuple(f"features.{name}" for name in FEATURES),
    }
    return made | ({"engaged": tuple(map(engaged, TARGETS))} if sizes.prefix else {})


def inputs(sizes: Sizes) -> dict[str, ListInput]:
    """The list columns of a request: tweets of `tokens` tokens, and histories of `past` values."""
    named = reads(sizes)
    lists = dict.fromkeys((*named["tokens"], *named["past"]), sizes.tokens)
    lists |= {name: sizes.past for one in ("there", "seconds", "engaged") for name in named.get(one, ())}
    return {name: ListInput(length) for name, length in lists.items()}


def _net_inputs(rows: pd.DataFrame, features: pd.DataFrame, sizes: Sizes) -> dict[str, NDArray[Any]]:
    lengths = inputs(sizes)
    return {
        name: columns(features, FEATURES, "float32")
        if name == "numbers"
        else np.concatenate([padded(rows[column], lengths[column].max_length) for column in its], axis=1)
        for name, its in reads(sizes).items()
    }
