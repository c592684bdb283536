"""NN3 in PyTorch: the wider GRU, one user table for author and reader, and their product."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.recsys2021.sizes import Sizes
from examples.recsys2021.text import GRU

__all__ = ["NN3"]


class NN3(nn.Module):  # type: ignore[misc]
    """Args: sizes, the frozen token table, rows of the user, language, media and tweet type tables, numbers."""

    def __init__(
        self, sizes: Sizes, table: Tensor, users: int, languages: int, medias: int, types: int, numbers: int
    ) -> None:
        super().__init__()
        self.text = GRU(table, sizes.nn3_gru)
        self.users = nn.Embedding(users, sizes.nn3_user)
        nn.init.normal_(self.users.weight, std=0.1)
        self.language = nn.Embedding(languages, sizes.nn3_category)
        self.media = nn.Embedding(medias, sizes.nn3_category)
        self.tweet_type = nn.Embedding(types, sizes.nn3_category)
        width = sizes.nn3_gru + 3 * sizes.nn3_user + 3 * sizes.nn3_category + numbers
        layers: list[nn.Module] = []
        for wide in sizes.nn3_top:
            layers += [nn.Linear(width, wide), nn.BatchNorm1d(wide), nn.SiLU()]
            width = wide
        self.top = nn.Sequential(*layers, nn.Linear(width, 4))

    def forward(
        self,
        tokens: Tensor,
        a_user: Tensor,
        b_user: Tensor,
        language: Tensor,
        media: Tensor,
        tweet_type: Tensor,
        numeric: Tensor,
    ) -> Tensor:
        """Probabilities [rows, 4].

        Args:
            tokens: [rows, 48] int64, 0 is the pad.
            a_user, b_user, language, media, tweet_type: [rows] int64.
            numeric: [rows, numbers] float32.
        """
        author, reader = self.users(a_user), self.users(b_user)
        kinds = [self.language(language), self.media(media), self.tweet_type(tweet_type)]
        every = torch.cat([self.text(tokens), author, reader, author * reader, *kinds, numeric], 1)
        return torch.sigmoid(self.top(every))
