"""BERT over a tweet alone, or over a tweet and another one together: what it makes of [CLS]."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from examples.microparade.sizes import Sizes
from tristage.errors import ArtifactError

__all__ = ["PAD", "PREFIXES", "TweetEncoder", "bert"]

# what BERT's own vocabularies, of any language, have in these places
PAD, UNK, CLS, SEP = 0, 100, 101, 102
PREFIXES = (1, 2, 3, 4)  # [unused1] to [unused4]: what tells how a past tweet was engaged with, one for each of TARGETS


def bert(sizes: Sizes) -> Any:
    """A `transformers.BertModel`: of the folder that sizes name, else of weights that are drawn. Nothing is fetched.

    Raises:
        ArtifactError: the folder holds none, or one that reads fewer tokens than a pair of tweets has.
    """
    from transformers import BertConfig, BertModel

    if sizes.bert is None:
        config = BertConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.bert_layers,
            num_attention_heads=sizes.bert_heads,
            intermediate_size=sizes.bert_inner,
            hidden_dropout_prob=sizes.dropout,
            attention_probs_dropout_prob=sizes.dropout,
        )
        made = BertModel(config, add_pooling_layer=False)
    else:
        if not (sizes.bert / "config.json").is_file():  # else transformers takes the name for one of a hub's
            raise ArtifactError(
                f"{sizes.bert} holds no BERT (no config.json); name a folder that save_pretrained wrote",
                path=sizes.bert,
            )
        try:
            made = BertModel.from_pretrained(sizes.bert, local_files_only=True, add_pooling_layer=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"the BERT in {sizes.bert} cannot be read ({error}); name a folder that save_pretrained wrote",
                path=sizes.bert,
            ) from error
    longest = 3 + len(PREFIXES) + 2 * sizes.tokens
    if longest > made.config.max_position_embeddings:
        raise ArtifactError(
            f"the BERT of {sizes.bert} reads {made.config.max_position_embeddings} tokens, a pair of tweets has up to "
            f"{longest}; take one that reads more"
        )
    return made


class TweetEncoder(nn.Module):
    """[CLS] tweet [SEP], or [CLS] tweet [SEP] other [SEP], to the vector of [CLS].

    Tweets come at a fixed length, PAD where there is no token, wherever that is. BERT is given no attention to padding
    and places that do not count it, so that it answers what it answers for the tokens without any.
    """

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, tweet: Any, other: Any = None) -> Any:
        """Token ids [many, length], and of the other [many, length of its own], to [many, width]."""
        sentences = [[_all(tweet, CLS), self._known(tweet), _all(tweet, SEP)]]
        if other is not None:
            sentences.append([self._known(other), _all(other, SEP)])
        parts = [torch.cat(sentence, 1) for sentence in sentences]
        tokens = torch.cat(parts, 1)
        there = (tokens != PAD).long()
        made = self.bert(
            input_ids=tokens,
            attention_mask=there,
            token_type_ids=torch.cat([torch.full_like(part, kind) for kind, part in enumerate(parts)], 1),
            position_ids=there.cumsum(1) - 1,  # never below 0: [CLS] is there
        )
        return made.last_hidden_state[:, 0]

    def _known(self, tokens: Any) -> Any:
        """Ids that the vocabulary lacks are [UNK]: one would fail all rows of a batch."""
        return torch.where((tokens >= 0) & (tokens < self.bert.config.vocab_size), tokens, UNK)


def _all(tokens: Any, token: int) -> Any:
    return torch.full_like(tokens[:, :1], token)
