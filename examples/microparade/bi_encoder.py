"""Another model, to see what it would cost: BERT reads every tweet alone, so that what it makes of one can be kept.

MicroParade's BERT reads the candidate and a past tweet together, and what it makes of a pair is of no use for another
pair. Here a tweet's vector is its own: a past tweet's can be computed once and sent with every request, and so can the
candidate's. What it predicts is not what MicroParade predicts, and how well, the text does not say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from examples.microparade.encoder import TweetEncoder, bert
from examples.microparade.net import Aggregator, past_tweets
from examples.microparade.sizes import Sizes

__all__ = ["BiEncoder", "KeptPast", "KeptTweets"]


class BiEncoder(nn.Module):
    """Nothing is kept: the candidate and every past tweet go through BERT."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tweets = TweetEncoder(bert(sizes))
        self.aggregator = Aggregator(sizes, self.tweets.bert.config.hidden_size)

    def vectors(self, past: Any, count: int, engaged: Any = None) -> Any:
        """What can be kept of past tweets: [rows, n * width]."""
        made = self.tweets(past_tweets(past, count, engaged))
        return made.reshape(-1, count * made.shape[1])

    def forward(self, tokens: Any, past: Any, there: Any, seconds: Any, numbers: Any, engaged: Any = None) -> Any:
        """Probabilities [rows, 4]; as MicroParade's."""
        kept = self.vectors(past, there.shape[1], engaged)
        return _answer(self.aggregator, self.tweets(tokens), kept, there, seconds, numbers)


class KeptPast(nn.Module):
    """A BiEncoder whose past tweets' vectors come with the request: BERT reads the candidate."""

    def __init__(self, whole: BiEncoder) -> None:
        super().__init__()
        self.tweets, self.aggregator = whole.tweets, whole.aggregator

    def forward(self, tokens: Any, past: Any, there: Any, seconds: Any, numbers: Any) -> Any:
        """Probabilities [rows, 4]; past is [rows, n * width]."""
        return _answer(self.aggregator, self.tweets(tokens), past, there, seconds, numbers)


class KeptTweets(nn.Module):
    """A BiEncoder whose tweets' vectors all come with the request: there is nothing for BERT to do."""

    def __init__(self, whole: BiEncoder) -> None:
        super().__init__()
        self.aggregator = whole.aggregator

    def forward(self, candidate: Any, past: Any, there: Any, seconds: Any, numbers: Any) -> Any:
        """Probabilities [rows, 4]; candidate is [rows, width], past [rows, n * width]."""
        return _answer(self.aggregator, candidate, past, there, seconds, numbers)


def _answer(aggregator: Aggregator, candidate: Any, past: Any, there: Any, seconds: Any, numbers: Any) -> Any:
    vectors = past.reshape(-1, there.shape[1], candidate.shape[1])
    return torch.sigmoid(aggregator(candidate, vectors, there, seconds, numbers))
