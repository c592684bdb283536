"""xDeepFM: a compressed interaction network beside dense layers and a linear part (Lian et al., arXiv:1803.05170)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from examples.compact.learn import mlp
from examples.toss_ctr.nets import Embeddings, Fields, Net
from examples.toss_ctr.rows import NUMBERS
from examples.toss_ctr.sizes import Sizes

__all__ = ["CIN", "XDeepFM"]


class CIN(nn.Module):
    """Products of fields, number by number: each layer's maps are mixtures of (map before, field) products.

    Args:
        fields: of what it reads.
        layers: maps of each layer; the k-th holds products of k + 1 fields.
    """

    def __init__(self, fields: int, layers: Sequence[int]) -> None:
        super().__init__()
        before = (fields, *layers)
        self.layers = nn.ModuleList(nn.Conv1d(fields * maps, its, 1) for maps, its in zip(before, layers, strict=False))

    def forward(self, fields: Any) -> Any:
        """[rows, fields, width] -> every map's sum, [rows, maps]."""
        maps, sums = fields, []
        for layer in self.layers:
            maps = torch.relu(layer((maps[:, :, None] * fields[:, None]).flatten(1, 2)))
            sums.append(maps.sum(2))
        return torch.cat(sums, 1)


class XDeepFM(Net):
    """Explicit products by the CIN, implicit ones by dense layers, and a linear part."""

    def __init__(self, sizes: Sizes, tables: Sequence[int]) -> None:
        super().__init__()
        self.fields = Fields(sizes, tables)
        self.linear, self.numbers = Embeddings(tables, 1), nn.Linear(len(NUMBERS), 1)
        self.cin = CIN(self.fields.count, sizes.cin)
        self.products = nn.Linear(sum(sizes.cin), 1, bias=False)
        self.dense = mlp(self.fields.count * sizes.fields, sizes.deep, 1)

    def scores(self, codes: Any, numbers: Any, seq: Any) -> Any:
        """The logit of a click."""
        fields = self.fields(codes, numbers, seq)
        linear = self.linear(codes).sum(1) + self.numbers(numbers)
        return linear + self.products(self.cin(fields)) + self.dense(fields.flatten(1))
