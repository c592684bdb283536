"""NN2 in PyTorch: a tweet tower and a reader tower multiplied, and a third tower for target encodings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from examples.recsys2021.sizes import Sizes
from examples.recsys2021.text import GRU

__all__ = ["NN2"]

WIDTHS = {"c_language": 18, "c_media": 12, "c_hour": 8, "c_tweet_type": 6, "c_weekday": 6}  # all others are 4 wide


class NN2(nn.Module):  # type: ignore[misc]
    """Args: sizes, the frozen token table, rows of the reader and of the hashtag table, rows by category, numbers."""

    def __init__(
        self,
        sizes: Sizes,
        table: Tensor,
        users: int,
        hashtags: int,
        categories: dict[str, int],
        encoded: int,
    ) -> None:
        super().__init__()
        self.cut = sizes.nn2_tokens
        self.text = GRU(table, sizes.nn2_gru)
        self.reader = nn.Embedding(users, sizes.nn2_user)
        self.tags = nn.Embedding(hashtags, sizes.nn2_hashtag, padding_idx=0)
        self.kinds = nn.ModuleList(nn.Embedding(rows, WIDTHS.get(name, 4)) for name, rows in categories.items())
        kinds = sum(WIDTHS.get(name, 4) for name in categories)
        nn.init.normal_(self.reader.weight, std=0.1)
        self.tweet_tower = _layers(sizes.nn2_gru + kinds + sizes.nn2_hashtag + 3, sizes.nn2_tower)
        self.reader_tower = _layers(sizes.nn2_user + 3, sizes.nn2_tower)
        self.other_tower = nn.Sequential(nn.BatchNorm1d(encoded + 3), *_layers(encoded + 3, sizes.nn2_other))
        self.top = _layers(sizes.nn2_tower[-1] + sizes.nn2_other[-1], sizes.nn2_top)
        self.answer = nn.Linear(sizes.nn2_top[-1], 4)

    def forward(
        self,
        tokens: Tensor,
        b_user: Tensor,
        hashtags: Tensor,
        categories: Tensor,
        tweet: Tensor,
        reader: Tensor,
        other: Tensor,
    ) -> Tensor:
        """Probabilities [rows, 4].

        Args:
            tokens: [rows, 48] int64, 0 is the pad.
            b_user: [rows] int64.
            hashtags: [rows, 8] int64, 0 is the pad.
            categories: [rows, categories] int64.
            tweet, reader: [rows, 3] float32 each.
            other: [rows, encoded + 3] float32.
        """
        kinds = [table(categories[:, at]) for at, table in enumerate(self.kinds)]
        written = torch.cat([self.text(tokens[:, : self.cut]), *kinds, self.tags(hashtags).sum(1), tweet], 1)
        read = torch.cat([self.reader(b_user), reader], 1)
        both = self.tweet_tower(written) * self.reader_tower(read)
        return torch.sigmoid(self.answer(self.top(torch.cat([both, self.other_tower(other)], 1))))


def _layers(width: int, widths: Sequence[int]) -> nn.Sequential:
    made: list[nn.Module] = []
    for wide in widths:
        made += [nn.Linear(width, wide), nn.BatchNorm1d(wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*made)
