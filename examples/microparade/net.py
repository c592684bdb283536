"""MicroParade: BERT reads the candidate beside each past tweet, and a transformer weighs what it makes of them.

The candidate alone stands first in what the transformer reads, and what becomes of it is the answer's embedding: 768
numbers, 192 of them after one layer, 243 with the features, four logits after a few more.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from examples.microparade import TARGETS
from examples.microparade.encoder import PAD, PREFIXES, TweetEncoder, bert
from examples.microparade.features import FEATURES
from examples.microparade.sizes import Sizes

__all__ = ["Aggregator", "MicroParade", "past_tweets", "repeated"]


class MicroParade(nn.Module):
    """The whole of it, trained end to end; see `scores` for what it reads."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tweets = TweetEncoder(bert(sizes))
        self.aggregator = Aggregator(sizes, self.tweets.bert.config.hidden_size)

    def scores(self, tokens: Any, past: Any, there: Any, seconds: Any, numbers: Any, engaged: Any = None) -> Any:
        """Logits [rows, 4].

        Args:
            tokens: of the candidate, [rows, length].
            past: of the past tweets, one after the other, [rows, n * length].
            there: not 0 where there is a past tweet, [rows, n].
            seconds: of each past tweet, [rows, n].
            numbers: the features, [rows, 51].
            engaged: not 0 where the reader engaged so with a past tweet, target by target, [rows, 4 * n]; None where
                texts have no prefix.
        """
        count = there.shape[1]
        others = past_tweets(past, count, engaged)
        pairs = self.tweets(repeated(tokens, count), others)
        alone = self.tweets(tokens)
        return self.aggregator(alone, pairs.reshape(-1, count, pairs.shape[1]), there, seconds, numbers)

    def forward(self, tokens: Any, past: Any, there: Any, seconds: Any, numbers: Any, engaged: Any = None) -> Any:
        """Probabilities [rows, 4]; as `scores`."""
        return torch.sigmoid(self.scores(tokens, past, there, seconds, numbers, engaged))


class Aggregator(nn.Module):
    """Vectors of a candidate and its past tweets, and the features, to logits [rows, 4]."""

    def __init__(self, sizes: Sizes, width: int) -> None:
        super().__init__()
        self.hours = nn.Embedding(24, width)
        layer = nn.TransformerEncoderLayer(width, sizes.heads, sizes.inner, sizes.dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, sizes.layers, enable_nested_tensor=False)
        answers = [1] * len(TARGETS) if sizes.each else [len(TARGETS)]
        self.heads = nn.ModuleList(Head(sizes, width, count) for count in answers)

    def forward(self, candidate: Any, past: Any, there: Any, seconds: Any, numbers: Any) -> Any:
        """candidate [rows, width], past [rows, n, width], there and seconds [rows, n], numbers [rows, 51]."""
        hour = seconds.remainder(86_400) // 3_600
        states = torch.cat([candidate[:, None], past + self.hours(hour)], 1)
        hidden = torch.cat([torch.zeros_like(there[:, :1]), there == 0], 1).bool()
        meta = self.encoder(states, src_key_padding_mask=hidden)[:, 0]
        return torch.cat([head(meta, numbers) for head in self.heads], 1)


class Head(nn.Module):
    """The encoder's answer made compact, beside it the features, then a feed-forward net."""

    def __init__(self, sizes: Sizes, width: int, answers: int) -> None:
        super().__init__()
        self.compact = _layer(width, sizes.compact, sizes.dropout)
        widths = (sizes.compact + len(FEATURES), *sizes.top)
        layers = [_layer(wide, narrow, sizes.dropout) for wide, narrow in pairwise(widths)]
        self.top = nn.Sequential(*layers, nn.Linear(widths[-1], answers))

    def forward(self, meta: Any, numbers: Any) -> Any:
        """meta [rows, width] and numbers [rows, 51] to logits [rows, answers]."""
        return self.top(torch.cat([self.compact(meta), numbers], 1))


def past_tweets(past: Any, count: int, engaged: Any = None) -> Any:
    """Past tweets below each other, behind prefixes: [rows * n, length + 4]; [rows * n, length] without `engaged`."""
    others = past.reshape(-1, past.shape[1] // count)
    if engaged is None:
        return others
    did = engaged.reshape(-1, len(PREFIXES), count).transpose(1, 2).reshape(-1, len(PREFIXES)) != 0
    return torch.cat([torch.where(did, torch.tensor(PREFIXES), PAD), others], 1)


def repeated(tokens: Any, count: int) -> Any:
    """Every row `count` times: [rows * count, length]."""
    length = tokens.shape[1]
    return tokens[:, None].expand(-1, count, length).reshape(-1, length)


def _layer(wide: int, narrow: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(wide, narrow), nn.LayerNorm(narrow), nn.ReLU(), nn.Dropout(dropout))
