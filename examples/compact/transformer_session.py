"""A session model: a transformer over the items of a session; what it makes of the last one scores what is next."""

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

__all__ = ["FULL", "SMALL", "SYSTEM", "Sizes", "TransformerSession"]


@dataclass(frozen=True)
class Sizes:
    """How large it is.

    Attributes:
        width: numbers of an item's embedding, and of every layer.
        heads: of attention.
        layers: how many.
        items: how many are known.
        length: items of a session that are read, the last ones.
        top: items that are named.
        rows: sessions to learn from.
    """

    width: int
    heads: int
    layers: int
    items: int
    length: int
    top: int
    rows: int
    epochs: int = 2
    batch: int = 128
    seed: int = 6


SMALL = Sizes(width=16, heads=2, layers=2, items=120, length=10, top=5, rows=4_000)
FULL = Sizes(width=192, heads=8, layers=4, items=100_000, length=50, top=10, rows=1_000_000, batch=1_024)


class Layer(nn.Module):
    """Attention over the items that are there, then a feed-forward net, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.three, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forwards = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, states: Any, there: Any) -> Any:
        """States [rows, length, width], and which of them may be looked at, [rows, 1, 1, length]."""
        rows, length, width = states.shape
        split = self.three(self.before(states)).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=there)
        states = states + self.joined(seen.transpose(1, 2).reshape(rows, length, width))
        return states + self.forwards(self.between(states))


class TransformerSession(NextItem):
    """Reads codes [rows, length], 0 behind the last."""

    def __init__(self, sizes: Sizes, items: NDArray[np.int64]) -> None:
        super().__init__(items, sizes.top)
        self.table = nn.Embedding(len(items), sizes.width, padding_idx=0)
        self.places = nn.Parameter(0.1 * torch.randn(sizes.length, sizes.width))
        self.layers = nn.ModuleList(Layer(sizes.width, sizes.heads) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.last = nn.Linear(sizes.width, len(items) - FIRST)

    def scores(self, items: Any) -> Any:
        """The logit of every item; of an empty session what padding in the first place says."""
        count = (items != 0).sum(1, keepdim=True)
        # the first place is looked at even where it is empty: of nothing, attention makes NaN
        there = torch.arange(items.shape[1]) < count.clamp(min=1)
        states = self.table(items) + self.places
        for layer in self.layers:
            states = layer(states, there[:, None, None, :])
        at = (count - 1).clamp(min=0)[:, :, None].expand(-1, 1, states.shape[2])
        return self.last(self.norm(states.gather(1, at).squeeze(1)))


def train(sizes: Sizes, folder: Path) -> Trained:
    """Train it; see `System.train`."""
    torch.manual_seed(sizes.seed)
    data = prepare(sizes, folder, room=4 * sizes.length, cut=True)
    net = TransformerSession(sizes, data.items)
    loss = nn.functional.cross_entropy
    fit(net, {"items": data.inputs}, data.following - FIRST, loss, sizes.epochs, sizes.batch, rate=0.003)
    return data.trained("transformer_session", net)


SYSTEM = System(
    "transformer_session",
    "Transformer session model",
    "best practices 4.2.4, deep learning part 2",
    "lists of variable length, masked attention, top-k in the net, ids of 64 bits",
    {"small": SMALL, "full": FULL},
    train,
)
