"""DCNv3: a linear and an exponential cross network beside dense layers, each taught by itself (arXiv:2407.13349)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from examples.compact.learn import mlp
from examples.toss_ctr.nets import Fields, Net
from examples.toss_ctr.sizes import Sizes

__all__ = ["DCNv3"]


class Cross(nn.Module):
    """One cross layer: x * [c, mask(c)] + b * x + state, where c = W state is half as wide, and noise is masked.

    The mask keeps what is above c's own mean: c * relu(layer norm of c).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernel = nn.Linear(width, width // 2, bias=False)
        self.norm = nn.LayerNorm(width // 2)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, crossed: Any, state: Any) -> Any:
        """Crosses `crossed` with `state`, [rows, width] each; a linear network crosses its input, an exponential one
        the state with itself, so that orders double."""
        half = self.kernel(state)
        return crossed * (torch.cat([half, half * torch.relu(self.norm(half))], 1) + self.bias) + state


class DCNv3(Net):
    """Three ways side by side, whose logits are averaged: LCN, ECN, and dense layers."""

    def __init__(self, sizes: Sizes, tables: Sequence[int]) -> None:
        super().__init__()
        self.fields = Fields(sizes, tables)
        width = self.fields.count * sizes.fields
        self.lcn = nn.ModuleList(Cross(width) for _ in range(sizes.crosses))
        self.ecn = nn.ModuleList(Cross(width) for _ in range(sizes.crosses))
        self.of_lcn, self.of_ecn = nn.Linear(width, 1), nn.Linear(width, 1)
        self.dense = mlp(width, sizes.deep, 1)

    def scores(self, codes: Any, numbers: Any, seq: Any) -> Any:
        """The logits of LCN, ECN and the dense layers, [rows, 3]."""
        first = self.fields(codes, numbers, seq).flatten(1)
        linear = exponential = first
        for layer in self.lcn:
            linear = layer(first, linear)
        for layer in self.ecn:
            exponential = layer(exponential, exponential)
        return torch.cat([self.of_lcn(linear), self.of_ecn(exponential), self.dense(first)], 1)

    def loss(self, scores: Any, clicked: Any, weight: Any) -> Any:
        """Tri-BCE: the mean's loss, and those of LCN and ECN, each weighing as much as it is above the mean's."""
        whole = super().loss(scores.mean(1, keepdim=True), clicked, weight)
        made = whole
        for head in range(2):
            own = super().loss(scores[:, head : head + 1], clicked, weight)
            made = made + (own - whole).detach().clamp(min=0) * own
        return made
