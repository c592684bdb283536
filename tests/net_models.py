"""Nets that recommenders are made of, trained for a moment on synthetic rows: what the exporters are proved on.

The three nets of the RecSys 2021 stack come from `examples`, at full layer sizes.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras
import numpy as np
import pandas as pd
import torch
from torch import nn

from examples.recsys2021 import nn1
from examples.recsys2021.nn2 import NN2, WIDTHS
from examples.recsys2021.nn3 import NN3
from examples.recsys2021.sizes import SMALL
from tristage.stack import ListInput, NetStep, Stack

LISTS = {"tokens": 48, "hashtags": 8, "history": 512, "basket": 20, "genres": 5, "seen": 40, "categories": 20}
COLUMNS = {"vae": "score0", "nn1": "score0", "nn2": "score0", "nn3": "score3"}  # of what each net is asked
USERS, ITEMS, WORDS, LONG = 500, 300, 2000, 512
SIZES = dataclasses.replace(SMALL, vocabulary=WORDS)
layers, ops = keras.layers, keras.ops


def make_rows(count: int, seed: int) -> dict[str, np.ndarray]:
    """Raw columns by name; lists are [rows, length], 0 is their pad, and some are empty."""
    draw = np.random.default_rng(seed)

    def lists(most: int, length: int) -> np.ndarray:
        made = draw.integers(1, most, (count, length))
        made[np.arange(length) >= draw.integers(0, length + 1, (count, 1))] = 0
        made[:1] = 0
        return made

    rows: dict[str, np.ndarray] = {
        "tokens": lists(WORDS, 48),
        "hashtags": lists(100, 8),
        "history": lists(ITEMS, LONG),
        "basket": lists(ITEMS, 20),
        "genres": lists(30, 5),
        "seen": (draw.random((count, 40)) < 0.2).astype(np.float32),
        "categories": draw.integers(0, 20, (count, 20)),
    }
    rows |= {name: draw.integers(0, USERS, count) for name in ("user", "author")}
    rows |= {name: draw.integers(0, 15, count) for name in ("language", "media", "weekday")}
    rows |= {"item": draw.integers(1, ITEMS, count), "tweet_type": draw.integers(0, 4, count)}
    rows |= {f"n{i}": draw.normal(size=count).astype(np.float32) for i in range(36)}
    return rows


NUMBERS = tuple(f"n{i}" for i in range(36))


class DLRM(nn.Module):  # type: ignore[misc]
    """Multi-hot features summed, and the dot products of all pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.one_hot = nn.ModuleList(nn.Embedding(rows, 16) for rows in (USERS, ITEMS, 15))
        self.multi_hot = nn.ModuleList(nn.Embedding(rows, 16, padding_idx=0) for rows in (ITEMS, 30))
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(16 + 15, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids: Any, basket: Any, genres: Any, dense: Any) -> Any:
        parts = [self.bottom(dense), *(table(ids[:, place]) for place, table in enumerate(self.one_hot))]
        parts += [table(many).sum(1) for table, many in zip(self.multi_hot, (basket, genres), strict=True)]
        every = torch.stack(parts, 1)
        first, second = torch.triu_indices(6, 6, 1)
        dots = (every @ every.transpose(1, 2))[:, first, second]
        return torch.sigmoid(self.top(torch.cat([parts[0], dots], 1)))


class Encoder(nn.Module):  # type: ignore[misc]
    """A transformer of two layers over the items of a session, padded items masked; the last item's state."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.places = nn.Embedding(ITEMS, 32, padding_idx=0), nn.Parameter(torch.randn(20, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.top = nn.Linear(32, 1)

    def forward(self, basket: Any) -> Any:
        real = basket != 0
        padded = ~real
        padded = torch.cat([torch.zeros_like(padded[:, :1]), padded[:, 1:]], 1)  # an empty session attends to a pad
        states = self.encoder(self.items(basket) + self.places, src_key_padding_mask=padded)
        last = real.sum(1).clamp(min=1) - 1
        return torch.sigmoid(self.top(torch.gather(states, 1, last[:, None, None].expand(-1, 1, 32)).squeeze(1)))


class VAE(nn.Module):  # type: ignore[misc]
    """Variational autoencoder of collaborative filtering: what is served decodes the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 32), nn.Tanh(), nn.Linear(32, 16))
        self.decode = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 40))

    def forward(self, seen: Any) -> Any:
        normal = seen / seen.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6)
        mean, spread = self.encode(normal).chunk(2, 1)
        if self.training:
            mean = mean + torch.randn_like(spread) * torch.exp(0.5 * spread)
        return torch.softmax(self.decode(mean), 1)


def wide_and_deep() -> Any:
    """A BiGRU over a long, masked history beside a wide part of crossed ids; Keras."""
    keras.utils.set_random_seed(1)
    history = keras.Input((LONG,), dtype="int64", name="history")
    user, item = (keras.Input((), dtype="int64", name=name) for name in ("user", "item"))
    numeric = keras.Input((13,), name="numeric")
    states = layers.Bidirectional(layers.GRU(12))(layers.Embedding(ITEMS, 16, mask_zero=True)(history))
    deep = layers.Concatenate()([states, layers.Embedding(USERS, 8)(user), layers.BatchNormalization()(numeric)])
    deep = layers.Dense(16, "relu")(layers.BatchNormalization()(layers.Dense(32, "relu")(deep)))
    wide = layers.Embedding(1000, 1)((user * 31 + item) % 1000)
    return keras.Model([history, user, item, numeric], ops.sigmoid(layers.Dense(1)(deep) + wide))


def ncf() -> Any:
    """Neural collaborative filtering: a product of factors beside layers over both; Keras."""
    keras.utils.set_random_seed(2)
    user, item = (keras.Input((), dtype="int64", name=name) for name in ("user", "item"))
    factors = layers.Embedding(USERS, 16)(user) * layers.Embedding(ITEMS, 16)(item)
    deep = layers.Concatenate()([layers.Embedding(USERS, 32)(user), layers.Embedding(ITEMS, 32)(item)])
    for width in (64, 32, 16):
        deep = layers.Dense(width, "relu")(deep)
    return keras.Model([user, item], layers.Dense(1, "sigmoid")(layers.Concatenate()([factors, deep])))


def recsys() -> dict[str, Any]:
    """NN1, NN2 and NN3."""
    torch.manual_seed(3)
    table = torch.randn(WORDS, SIZES.bert) * 0.05
    kinds = dict.fromkeys((*WIDTHS, *(f"x{i}" for i in range(15))), 20)
    keras.utils.set_random_seed(3)
    cardinalities = {"c_tweet_type": 4, "c_language": 66, "c_media": 15, "c_weekday": 15}
    return {
        "nn1": nn1.build(SIZES, USERS, cardinalities, 27),
        "nn2": NN2(SIZES, table, USERS, 100, kinds, 28),
        "nn3": NN3(SIZES, table, USERS, 67, 15, 4, 36),
    }


# net -> its inputs, each of raw columns side by side
READS: dict[str, dict[str, tuple[str, ...]]] = {
    "dlrm": {"ids": ("user", "item", "language"), "basket": ("basket",), "genres": ("genres",), "dense": NUMBERS[:13]},
    "wide_deep": {"history": ("history",), "user": ("user",), "item": ("item",), "numeric": NUMBERS[:13]},
    "encoder": {"basket": ("basket",)},
    "ncf": {"user": ("user",), "item": ("item",)},
    "vae": {"seen": ("seen",)},
    "nn1": {
        "tokens": ("tokens",), "a_user": ("author",), "b_user": ("user",), "tweet_type": ("tweet_type",),
        "language": ("language",), "media": ("media",), "weekday": ("weekday",), "numeric": NUMBERS[:27],
    },
    "nn2": {
        "tokens": ("tokens",), "b_user": ("user",), "hashtags": ("hashtags",), "categories": ("categories",),
        "tweet": NUMBERS[:3], "reader": NUMBERS[3:6], "other": NUMBERS[:31],
    },
    "nn3": {
        "tokens": ("tokens",), "a_user": ("author",), "b_user": ("user",), "language": ("language",),
        "media": ("media",), "tweet_type": ("tweet_type",), "numeric": NUMBERS,
    },
}  # fmt: skip


def inputs_of(net: str, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a net is called with."""
    return {
        name: rows[columns[0]] if len(columns) == 1 else np.stack([rows[column] for column in columns], 1)
        for name, columns in READS[net].items()
    }


def train() -> dict[str, Any]:
    """Every net, trained for a moment: Keras models, and of torch a module, TorchScript and programs."""
    torch.manual_seed(4)
    made: dict[str, Any] = {
        "dlrm": DLRM(), "wide_deep": wide_and_deep(), "encoder": Encoder(), "ncf": ncf(), "vae": VAE(), **recsys()
    }  # fmt: skip
    rows = make_rows(24, 0)
    return {
        name: (_fit_torch if isinstance(net, nn.Module) else _fit_keras)(name, net, rows) for name, net in made.items()
    }


def _fit_keras(name: str, net: Any, rows: dict[str, np.ndarray]) -> Any:
    net.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", jit_compile=False)
    truth = np.random.default_rng(5).random((24, net.output_shape[1])).round()
    for _ in range(2):
        net.train_on_batch(inputs_of(name, rows), truth)
    return net


def _fit_torch(name: str, net: Any, rows: dict[str, np.ndarray]) -> Any:
    given = {key: torch.from_numpy(values) for key, values in inputs_of(name, rows).items()}
    optimizer = torch.optim.Adam([w for w in net.parameters() if w.requires_grad], 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        answers = net(**given)
        nn.functional.binary_cross_entropy(answers, torch.rand(answers.shape).round()).backward()
        optimizer.step()
    net.eval()
    if name in ("dlrm", "vae"):  # the ways that need example rows
        return net if name == "dlrm" else torch.jit.trace(net, example_kwarg_inputs=given)
    batch = torch.export.Dim("rows", min=1, max=65536)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(
            net, (), kwargs=given, dynamic_shapes={key: {0: batch} for key in given}, strict=False
        )


def examples_of(name: str, net: Any) -> dict[str, np.ndarray] | None:
    """Example rows of a net that does not say what it reads."""
    return inputs_of(name, make_rows(3, 6)) if isinstance(net, nn.Module) else None


def frame(rows: dict[str, np.ndarray]) -> pd.DataFrame:
    """Lists without their pads, where zeros at their end are pads; the client pads them."""

    def cut(values: np.ndarray) -> list[Any]:
        return values[: len(values) - int((values[::-1] != 0).argmax()) if values.any() else 0].tolist()

    return pd.DataFrame(
        {name: [cut(row) for row in values] if name in LISTS else values for name, values in rows.items()}
    )


def make_stack(trained: dict[str, Any], folder: Path) -> Stack:
    """All of them beside each other, with golden rows in `folder`."""
    frame(make_rows(60, 1)).to_parquet(folder / "golden.parquet", index=False)
    return Stack(
        "nets",
        {name: NetStep(net, READS[name], examples=examples_of(name, net)) for name, net in trained.items()},
        {f"out_{name}": f"{name}.{COLUMNS.get(name, 'score')}" for name in trained},
        inputs={name: ListInput(length, 0) for name, length in LISTS.items()},
        golden=folder / "golden.parquet",
    )
