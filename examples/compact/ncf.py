"""NCF: the product of a user's and an item's factors, beside an MLP of other embeddings of both, joined by a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.compact.ctr import prepare
from examples.compact.learn import ask, fit, mlp
from examples.compact.system import System, Trained

__all__ = ["FULL", "NCF", "SMALL", "SYSTEM", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """How large it is.

    Attributes:
        factors: numbers of a factor.
        layers: of the MLP; the first is as wide as both of its embeddings together.
        users, items: how many are known.
        hot: genres of a row: none.
        rows: rows to learn from.
    """

    factors: int
    layers: tuple[int, ...]
    users: int
    items: int
    rows: int
    hot: int = 0
    epochs: int = 1
    batch: int = 256
    seed: int = 4


SMALL = Sizes(factors=8, layers=(32, 16, 8), users=800, items=300, rows=8_000)
# MovieLens 20M, as NVIDIA's NCF has it
FULL = Sizes(factors=64, layers=(256, 256, 128, 64), users=138_493, items=26_744, rows=1_000_000, batch=16_384)


class NCF(nn.Module):
    """Reads codes [rows, 2], the user's and the item's."""

    def __init__(self, sizes: Sizes, tables: Sequence[int]) -> None:
        super().__init__()
        users, items, half = tables[0], tables[1], sizes.layers[0] // 2
        self.user_factors, self.item_factors = nn.Embedding(users, sizes.factors), nn.Embedding(items, sizes.factors)
        self.user, self.item = nn.Embedding(users, half), nn.Embedding(items, half)
        self.mlp = nn.Sequential(mlp(2 * half, sizes.layers[1:-1], sizes.layers[-1]), nn.ReLU())
        self.last = nn.Linear(sizes.factors + sizes.layers[-1], 1)

    def scores(self, codes: Any) -> Any:
        """The logit of a click, [rows, 1]."""
        user, item = codes[:, 0], codes[:, 1]
        product = self.user_factors(user) * self.item_factors(item)
        return self.last(torch.cat([product, self.mlp(torch.cat([self.user(user), self.item(item)], 1))], 1))

    def forward(self, codes: Any) -> Any:
        """The probability that the user takes to the item."""
        return {"click": torch.sigmoid(self.scores(codes))}


def train(sizes: Sizes, folder: Path) -> Trained:
    """Train it; see `System.train`."""
    torch.manual_seed(sizes.seed)
    data = prepare(sizes, folder, ("user", "item"))
    net = NCF(sizes, data.tables)
    loss = nn.functional.binary_cross_entropy_with_logits
    fit(net, {"codes": data.inputs["codes"]}, data.clicked, loss, sizes.epochs, sizes.batch)
    return data.trained("ncf", net, ("codes",), lambda rows: ask(net, rows)["click"])


SYSTEM = System(
    "ncf",
    "NCF",
    "deep learning part 2",
    "two pairs of tables for the same ids, a product beside an MLP",
    {"small": SMALL, "full": FULL},
    train,
)
