"""VAE-CF: what a user has met, as a vector of all items, through a variational autoencoder; the best of the others.

A request holds the items' ids; the vector is made in the net. Items that the user has met are never answered: where
fewer than asked are left, the rest are -1 with a score of 0.
"""

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

__all__ = ["FULL", "SMALL", "SYSTEM", "VAECF", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """How large it is.

    Attributes:
        hidden: width of the encoder's and of the decoder's hidden layer.
        latent: width of the distribution between them.
        items: how many are known.
        length: items that a request may hold.
        top: items that are named.
        rows: users to learn from.
    """

    hidden: int
    latent: int
    items: int
    length: int
    top: int
    rows: int
    epochs: int = 2
    batch: int = 128
    seed: int = 7


SMALL = Sizes(hidden=48, latent=16, items=120, length=120, top=10, rows=3_000)
# MovieLens 20M, as NVIDIA's VAE-CF has it
FULL = Sizes(hidden=600, latent=200, items=20_108, length=1_000, top=10, rows=116_677, batch=500)


class VAECF(NextItem):
    """Reads codes [rows, length], in any order, 0 where there is none."""

    def __init__(self, sizes: Sizes, items: NDArray[np.int64]) -> None:
        super().__init__(items, sizes.top)
        every = len(items) - FIRST
        self.encoder = nn.Sequential(
            nn.Linear(every, sizes.hidden), nn.Tanh(), nn.Linear(sizes.hidden, 2 * sizes.latent)
        )
        self.decoder = nn.Sequential(nn.Linear(sizes.latent, sizes.hidden), nn.Tanh(), nn.Linear(sizes.hidden, every))

    def met(self, items: Any) -> Any:
        """1 for every item that is there, else 0: [rows, items]."""
        none = torch.zeros(items.shape[0], len(self.items))
        return none.scatter(1, items, torch.ones_like(items, dtype=none.dtype))[:, FIRST:]

    def encode(self, met: Any) -> Any:
        """Mean and logarithm of the variance, [rows, latent] each."""
        length = met.square().sum(1, keepdim=True).sqrt().clamp(min=1)
        return self.encoder(met / length).chunk(2, dim=1)

    def scores(self, items: Any) -> Any:
        """For learning: logits of a draw from the distribution, the distribution, and what they should tell."""
        met = self.met(items)
        mean, log_variance = self.encode(met)
        drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(drawn), mean, log_variance, met

    def forward(self, items: Any) -> Any:
        """The likeliest items that were not met, and how likely they are: item [rows, top] int64, score [rows, top]."""
        met = self.met(items)
        mean, _ = self.encode(met)
        likely = torch.where(met > 0, -1.0, torch.softmax(self.decoder(mean), 1))
        score, at = likely.topk(self.top, dim=1)
        return {"item": torch.where(score < 0, -1, self.items[at + FIRST]), "score": score.clamp(min=0)}


def loss(scores: Any, _: Any) -> Any:
    """The multinomial likelihood of what was met, and how far the distribution is from the normal one."""
    logits, mean, log_variance, met = scores
    told = -(torch.log_softmax(logits, 1) * met).sum(1)
    apart = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
    return (told + 0.2 * apart).mean()


def train(sizes: Sizes, folder: Path) -> Trained:
    """Train it; see `System.train`."""
    torch.manual_seed(sizes.seed)
    data = prepare(sizes, folder, room=sizes.length)
    net = VAECF(sizes, data.items)
    fit(net, {"items": data.inputs}, data.following, loss, sizes.epochs, sizes.batch)
    return data.trained("vae_cf", net)


SYSTEM = System(
    "vae_cf",
    "VAE-CF",
    "deep learning part 2",
    "a vector of all items made of a list, top-k of what was not met in the net, ids of 64 bits",
    {"small": SMALL, "full": FULL},
    train,
)
