"""How large everything is: one frozen dataclass, one value of it for each size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["FULL", "SIZES", "SMALL", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """Every number that decides what the rows and the net cost.

    Attributes:
        past: past tweets of a request, the text's n; its figures are for 4, 6 and 10.
        tokens: of a tweet that are read; longer ones are cut.
        vocabulary: token ids are below it; what is not is read as [UNK].
        width: of BERT's vectors, and of the encoder over them.
        bert_layers, bert_heads, bert_inner: of BERT; `bert_inner` is the width between its two dense layers.
        layers, heads, inner: of the transformer encoder over the candidate and its past tweets.
        compact: what the encoder's answer becomes before the 51 features join it, 768 -> 192 in the text.
        top: layers between that and the answers.
        rows: to learn from.
        users, languages: different ones, in synthetic rows.
        golden: held-out rows that the served answers are compared on.
        epochs, batch, rate: of training.
        max_batch: rows that one request may hold.
        prefix: whether a past tweet's text begins with how the user engaged with it.
        each: whether every target has the layers behind the encoder to itself, the text's "multi head".
        bert: a folder of a BERT's own weights, as `save_pretrained` writes it, whose sizes then hold; None draws
            weights.
        dropout: in training.
    """

    past: int
    tokens: int
    vocabulary: int
    width: int
    bert_layers: int
    bert_heads: int
    bert_inner: int
    layers: int
    heads: int
    inner: int
    compact: int
    top: tuple[int, ...]
    rows: int
    users: int
    languages: int
    golden: int
    epochs: int
    batch: int
    rate: float
    max_batch: int
    prefix: bool = True
    each: bool = False
    bert: Path | None = None
    dropout: float = 0.1
    seed: int = 8


SMALL = Sizes(
    past=4,
    tokens=12,
    vocabulary=1_000,
    width=32,
    bert_layers=2,
    bert_heads=2,
    bert_inner=64,
    layers=2,
    heads=2,
    inner=64,
    compact=8,
    top=(48, 24),
    rows=4_000,
    users=300,
    languages=8,
    golden=400,
    epochs=2,
    batch=64,
    rate=0.003,
    max_batch=256,
)

FULL = Sizes(
    past=10,
    tokens=64,
    vocabulary=119_547,  # of the multilingual BERT that made the challenge's tokens
    width=768,
    bert_layers=12,
    bert_heads=12,
    bert_inner=3_072,
    layers=2,
    heads=8,
    inner=3_072,
    compact=192,
    top=(128, 64),
    rows=100_000,
    users=20_000,
    languages=66,
    golden=4,
    epochs=1,
    batch=40,
    rate=0.00001,
    max_batch=4,  # on one CPU core a row takes seconds
)

SIZES = {"small": SMALL, "full": FULL}
