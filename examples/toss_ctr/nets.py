"""What the PyTorch nets share: what they read, a loss, an answer; and the simplest of them, an MLP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from examples.compact.learn import mlp
from examples.toss_ctr.rows import CODES, FAMILIES, NUMBERS
from examples.toss_ctr.sequence import BiGRU
from examples.toss_ctr.sizes import Sizes

__all__ = ["MLP", "Embeddings", "Fields", "Net"]


class Net(nn.Module, ABC):
    """Reads codes [rows, CODES], numbers [rows, NUMBERS] and seq [rows, length], 0 behind the last."""

    @abstractmethod
    def scores(self, codes: Any, numbers: Any, seq: Any) -> Any:
        """The logit of a click, [rows, 1]; a net with several heads has one for each, [rows, heads]."""

    def loss(self, scores: Any, clicked: Any, weight: Any) -> Any:
        """How far scores are from what was clicked [rows, 1]; a click weighs `weight`."""
        return nn.functional.binary_cross_entropy_with_logits(scores, clicked, pos_weight=weight)

    def forward(self, codes: Any, numbers: Any, seq: Any) -> Any:
        """The probability of a click, and its logit, [rows, 1] each."""
        logit = self.scores(codes, numbers, seq).mean(1, keepdim=True)
        return {"click": torch.sigmoid(logit), "click_margin": logit}


class Embeddings(nn.Module):
    """A vector for every code, [rows, CODES, width]."""

    def __init__(self, tables: Sequence[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for rows in tables[: len(CODES)])

    def forward(self, codes: Any) -> Any:
        """Codes [rows, CODES]."""
        return torch.stack([table(codes[:, at]) for at, table in enumerate(self.tables)], 1)


class Fields(nn.Module):
    """All that is known of a row as vectors of one width, [rows, fields, width].

    A code is a field, and so is a family of numbers, and the sequence.
    """

    def __init__(self, sizes: Sizes, tables: Sequence[int]) -> None:
        super().__init__()
        self.codes = Embeddings(tables, sizes.fields)
        self.families = nn.ModuleList(nn.Linear(count, sizes.fields) for count in FAMILIES.values())
        self.sequence = BiGRU(tables[-1], sizes.width, sizes.state, sizes.projected)
        self.widened = nn.Linear(sizes.projected, sizes.fields)
        self.count = len(CODES) + len(FAMILIES) + 1

    def forward(self, codes: Any, numbers: Any, seq: Any) -> Any:
        """What a net reads."""
        parts = numbers.split(list(FAMILIES.values()), 1)
        families = [layer(part) for layer, part in zip(self.families, parts, strict=True)]
        return torch.cat([self.codes(codes), torch.stack([*families, self.widened(self.sequence(seq))], 1)], 1)


class MLP(Net):
    """Embeddings, numbers and the projected sequence, side by side, through dense layers."""

    def __init__(self, sizes: Sizes, tables: Sequence[int]) -> None:
        super().__init__()
        self.codes = Embeddings(tables, sizes.width)
        self.sequence = BiGRU(tables[-1], sizes.width, sizes.state, sizes.projected)
        self.dense = mlp(len(CODES) * sizes.width + len(NUMBERS) + sizes.projected, sizes.deep, 1)

    def scores(self, codes: Any, numbers: Any, seq: Any) -> Any:
        """The logit of a click."""
        return self.dense(torch.cat([self.codes(codes).flatten(1), numbers, self.sequence(seq)], 1))
