"""DLRM: numbers through a bottom MLP, ids through one fused embedding table, the dot products of all pairs, a top MLP.

Tables of one width lie in a single one, one below the other, so that a row is one look-up; its width is padded to 16
bytes. A row has several genres: their embeddings are summed.
"""

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

__all__ = ["DLRM", "FULL", "SMALL", "SYSTEM", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """How large it is.

    Attributes:
        width: numbers of an embedding, before it is padded.
        bottom: hidden layers of the bottom MLP.
        top: hidden layers of the top MLP.
        users, items: rows of the largest tables.
        hot: genres of a row, at most.
        rows: rows to learn from.
    """

    width: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    users: int
    items: int
    hot: int
    rows: int
    epochs: int = 1
    batch: int = 256
    seed: int = 1


SMALL = Sizes(width=14, bottom=(32,), top=(64, 32), users=800, items=300, hot=4, rows=8_000)
FULL = Sizes(
    width=128,
    bottom=(512, 256),
    top=(2048, 1024, 512, 256),
    users=10_000_000,
    items=1_000_000,
    hot=64,
    rows=10_000_000,
    batch=16_384,
)


class DLRM(nn.Module):
    """Reads codes [rows, 3] and genres [rows, hot], 0 where there is none, and numbers [rows, 2]."""

    def __init__(self, sizes: Sizes, tables: Sequence[int]) -> None:
        super().__init__()
        width = -(-sizes.width // 4) * 4  # 4 float32 are 16 bytes
        starts = torch.tensor([0, *tables]).cumsum(0)
        self.register_buffer("starts", starts[: len(CODES)])
        self.genres = int(starts[len(CODES)])
        self.table = nn.Embedding(int(starts[-1]), width)
        self.bottom = nn.Sequential(mlp(len(NUMBERS), sizes.bottom, width), nn.ReLU())
        vectors = len(CODES) + 2  # the genres' sum, and the numbers'
        pairs = torch.tril_indices(vectors, vectors, -1)
        self.register_buffer("pairs", pairs[0] * vectors + pairs[1])
        self.top = mlp(width + pairs.shape[1], sizes.top, 1)

    def scores(self, codes: Any, genres: Any, numbers: Any) -> Any:
        """The logit of a click, [rows, 1]."""
        found = self.table(torch.cat([codes + self.starts, genres + self.genres], 1))
        pooled = (found[:, len(CODES) :] * (genres != 0).unsqueeze(2)).sum(1, keepdim=True)
        dense = self.bottom(numbers)
        vectors = torch.cat([dense.unsqueeze(1), found[:, : len(CODES)], pooled], 1)
        dots = (vectors @ vectors.transpose(1, 2)).flatten(1)[:, self.pairs]
        return self.top(torch.cat([dense, dots], 1))

    def forward(self, codes: Any, genres: Any, numbers: Any) -> Any:
        """The probability of a click."""
        return {"click": torch.sigmoid(self.scores(codes, genres, numbers))}


def train(sizes: Sizes, folder: Path) -> Trained:
    """Train it; see `System.train`."""
    torch.manual_seed(sizes.seed)
    data = prepare(sizes, folder)
    net = DLRM(sizes, data.tables)
    loss = nn.functional.binary_cross_entropy_with_logits
    fit(net, data.inputs, data.clicked, loss, sizes.epochs, sizes.batch)
    return data.trained("dlrm", net, ("codes", "genres", "numbers"), lambda rows: ask(net, rows)["click"])


SYSTEM = System(
    "dlrm",
    "DLRM",
    "best practices 4.2, deep learning part 2",
    "fused tables of one padded width, pooled multi-hot lists, pairwise dot products",
    {"small": SMALL, "full": FULL},
    train,
)
