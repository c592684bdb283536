"""A GRU over a sequence and one over it backwards, without the padding behind it; read in two fashions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["BiGRU"]


class BiGRU(nn.Module):
    """A sequence of codes [rows, length], 0 behind the last, as one vector; of an empty one, zeros are projected.

    Each GRU ends where the sequence does: what `pack_padded_sequence` is for, of gathers, which ONNX has.

    Args:
        items: rows of the embedding table.
        width: numbers of an embedding.
        state: numbers of a GRU's state.
        projected: the last states of both are projected to so many numbers; None: attention makes one vector of all
            states, [rows, 2 * state], which nothing projects.
    """

    def __init__(self, items: int, width: int, state: int, projected: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(items, width, padding_idx=0)
        self.ahead = nn.GRU(width, state, batch_first=True)
        self.back = nn.GRU(width, state, batch_first=True)
        self.projection = None if projected is None else nn.Linear(2 * state, projected)
        self.attention = nn.Linear(2 * state, 1) if projected is None else None

    def forward(self, seq: Any) -> Any:
        """[rows, projected], or [rows, 2 * state]."""
        count = (seq != 0).sum(1, keepdim=True)
        place = torch.arange(seq.shape[1], device=seq.device)
        turned = (count - 1 - place).clamp(
            min=0
        )  # from the last to the first; then the first again, which nobody reads
        ahead, _ = self.ahead(self.table(seq))
        back, _ = self.back(self.table(seq.gather(1, turned)))
        some = (count > 0).to(ahead.dtype)
        if self.projection is not None:
            last = (count - 1).clamp(min=0)[:, :, None].expand(-1, 1, ahead.shape[2])
            ends = torch.cat([ahead.gather(1, last), back.gather(1, last)], 2).squeeze(1)
            return self.projection(ends * some)
        assert self.attention is not None
        states = torch.cat([ahead, back.gather(1, turned[:, :, None].expand(-1, -1, back.shape[2]))], 2)
        there = place < count.clamp(min=1)  # of nothing, a softmax makes NaN
        weights = torch.softmax(self.attention(states).squeeze(2).masked_fill(~there, -torch.inf), 1)
        return (weights[:, None, :] @ states).squeeze(1) * some
