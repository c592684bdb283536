"""What every file of this folder ends with: a system, and what training it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from tristage.stack import Stack

__all__ = ["System", "Trained"]


@dataclass(frozen=True)
class Trained:
    """A trained system.

    Attributes:
        stack: what is exported; its golden rows were never learned from.
        awkward: rows that nobody trains on: unseen ids, nulls, empty and overlong lists, numbers that are none.
        answer: what the training libraries answer for raw rows: output -> [rows] or [rows, n]. It asks NVTabular and
            the net themselves, and nothing of tristage.
        max_batch: rows that one request may hold.
        scores: output -> average precision on rows that were never learned from; empty where nobody asks.
    """

    stack: Stack
    awkward: pd.DataFrame
    answer: Callable[[pd.DataFrame], Mapping[str, NDArray[Any]]]
    max_batch: int = 1024
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """One system.

    Attributes:
        name: what the command calls it, and its file.
        title: what people call it.
        text: the texts in which it stands, see README.md.
        needs: what a server needs in order to answer for it.
        sizes: "small" and "full" -> its dataclass of sizes.
        train: draws rows, trains, and writes golden rows and the workflow's files into a folder.
    """

    name: str
    title: str
    text: str
    needs: str
    sizes: Mapping[str, Any]
    train: Callable[[Any, Path], Trained]
