"""Wide & Deep: a weight for every code and number, beside dense layers that read a sequence's BiGRU too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from examples.compact.learn import mlp
from examples.toss_ctr.nets import Embeddings, Net
from examples.toss_ctr.rows import CODES, NUMBERS
from examples.toss_ctr.sequence import BiGRU
from examples.toss_ctr.sizes import Sizes

__all__ = ["WideDeep"]


class WideDeep(Net):
    """Reads the first `short` codes of a sequence.

    Args:
        sizes: how large it is.
        tables: rows of the embedding tables.
        whole: whether the BiGRU's states are read as they are, with attention; else projected.
    """

    def __init__(self, sizes: Sizes, tables: Sequence[int], whole: bool) -> None:
        super().__init__()
        self.short = sizes.short
        self.wide, self.numbers = Embeddings(tables, 1), nn.Linear(len(NUMBERS), 1)
        self.codes = Embeddings(tables, sizes.width)
        self.sequence = BiGRU(tables[-1], sizes.width, sizes.state, None if whole else sizes.projected)
        read = 2 * sizes.state if whole else sizes.projected
        self.dense = mlp(len(CODES) * sizes.width + len(NUMBERS) + read, sizes.deep, 1)

    def scores(self, codes: Any, numbers: Any, seq: Any) -> Any:
        """The logit of a click."""
        deep = torch.cat([self.codes(codes).flatten(1), numbers, self.sequence(seq[:, : self.short])], 1)
        return self.wide(codes).sum(1) + self.numbers(numbers) + self.dense(deep)
