"""DCN-v2: cross layers, x0 * (W x + b) + x, beside an MLP; both read embeddings and numbers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.compact.ctr import CODES, prepare
from examples.compact.learn import ask, fit, mlp
from examples.compact.rows import NUMBERS
from examples.compact.system import System, Trained

__all__ = ["DCN", "FULL", "SMALL", "SYSTEM", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """How large it is.

    Attributes:
        width: numbers of an embedding.
        crosses: cross layers.
        deep: hidden layers of the MLP.
        users, items: how many are known.
        hot: genres of a row, at most; their embeddings are averaged.
        rows: rows to learn from.
    """

    width: int
    crosses: int
    deep: tuple[int, ...]
    users: int
    items: int
    hot: int
    rows: int
    epochs: int = 1
    batch: int = 256
    seed: int = 3


SMALL = Sizes(width=8, crosses=3, deep=(32, 16), users=800, items=300, hot=4, rows=8_000)
FULL = Sizes(
    width=128,
    crosses=3,
    deep=(2048, 1024, 512, 256),
    users=1_000_000,
    items=100_000,
    hot=64,
    rows=2_000_000,
    batch=16_384,
)


class DCN(nn.Module):
    """Reads codes [rows, 3] and genres [rows, hot], 0 where there is none, and numbers [rows, 2]."""

    def __init__(self, sizes: Sizes, tables: Sequence[int]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, sizes.width) for rows in tables)
        width = len(tables) * sizes.width + len(NUMBERS)
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(sizes.crosses))
        self.deep = nn.Sequential(mlp(width, sizes.deep[:-1], sizes.deep[-1]), nn.ReLU())
        self.last = nn.Linear(width + sizes.deep[-1], 1)

    def scores(self, codes: Any, genres: Any, numbers: Any) -> Any:
        """The logit of a click, [rows, 1]."""
        there = (genres != 0).unsqueeze(2)
        mean = (self.tables[-1](genres) * there).sum(1) / there.sum(1).clamp(min=1)
        first = torch.cat([*(self.tables[at](codes[:, at]) for at in range(len(CODES))), mean, numbers], 1)
        crossed = first
        for layer in self.crosses:
            crossed = first * layer(crossed) + crossed
        return self.last(torch.cat([crossed, self.deep(first)], 1))

    def forward(self, codes: Any, genres: Any, numbers: Any) -> Any:
        """The probability of a click."""
        return {"click": torch.sigmoid(self.scores(codes, genres, numbers))}


def train(sizes: Sizes, folder: Path) -> Trained:
    """Train it; see `System.train`."""
    torch.manual_seed(sizes.seed)
    data = prepare(sizes, folder)
    net = DCN(sizes, data.tables)
    loss = nn.functional.binary_cross_entropy_with_logits
    fit(net, data.inputs, data.clicked, loss, sizes.epochs, sizes.batch, rate=0.003)
    return data.trained("dcn", net, ("codes", "genres", "numbers"), lambda rows: ask(net, rows)["click"])


SYSTEM = System(
    "dcn",
    "DCN-v2",
    "best practices 4.2, deep learning part 2",
    "cross layers, lists pooled to their mean",
    {"small": SMALL, "full": FULL},
    train,
)
