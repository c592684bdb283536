"""A session model: a GRU over a session's items, of any number; its state after the last one scores what is next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from examples.compact.learn import fit
from examples.compact.next_item import FIRST, NextItem, prepare
from examples.compact.system import System, Trained

__all__ = ["FULL", "SMALL", "SYSTEM", "GRUSession", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """How large it is.

    Attributes:
        width: numbers of an item's embedding.
        hidden: numbers of the GRU's state.
        items: how many are known.
        length: items of a session that are read, the last ones.
        top: items that are named.
        rows: sessions to learn from.
    """

    width: int
    hidden: int
    items: int
    length: int
    top: int
    rows: int
    epochs: int = 2
    batch: int = 128
    seed: int = 5


SMALL = Sizes(width=16, hidden=24, items=120, length=10, top=5, rows=4_000)
FULL = Sizes(width=128, hidden=256, items=100_000, length=50, top=10, rows=1_000_000, batch=1_024)


class GRUSession(NextItem):
    """Reads codes [rows, length], 0 behind the last."""

    def __init__(self, sizes: Sizes, items: NDArray[np.int64]) -> None:
        super().__init__(items, sizes.top)
        self.table = nn.Embedding(len(items), sizes.width, padding_idx=0)
        self.gru = nn.GRU(sizes.width, sizes.hidden, batch_first=True)
        self.last = nn.Linear(sizes.hidden, len(items) - FIRST)

    def scores(self, items: Any) -> Any:
        """The logit of every item; of an empty session what a state of zeros says."""
        states, _ = self.gru(self.table(items))
        count = (items != 0).sum(1)
        at = (count - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
        state = states.gather(1, at).squeeze(1) * (count > 0)[:, None]
        return self.last(state)


def train(sizes: Sizes, folder: Path) -> Trained:
    """Train it; see `System.train`."""
    torch.manual_seed(sizes.seed)
    data = prepare(sizes, folder, room=4 * sizes.length, cut=True)
    net = GRUSession(sizes, data.items)
    fit(net, {"items": data.inputs}, data.following - FIRST, nn.functional.cross_entropy, sizes.epochs, sizes.batch)
    return data.trained("gru_session", net)


SYSTEM = System(
    "gru_session",
    "GRU session model",
    "best practices 4.2.4, deep learning part 2",
    "lists of variable length, the state of the last step, top-k in the net, ids of 64 bits",
    {"small": SMALL, "full": FULL},
    train,
)
