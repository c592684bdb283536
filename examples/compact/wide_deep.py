"""Wide & Deep (Keras): a linear model of ids, crossed ids and numbers, beside an MLP of embeddings and numbers.

The crosses are made by NVTabular, so that the wide part is a look-up of one weight for each code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.compact.ctr import CODES, prepare
from examples.compact.rows import NUMBERS
from examples.compact.system import System, Trained

__all__ = ["FULL", "SMALL", "SYSTEM", "Sizes", "wide_and_deep"]

_CROSSES = (("user", "device"), ("item", "device"))


@dataclass(frozen=True)
class Sizes:
    """How large it is.

    Attributes:
        width: numbers of an embedding.
        deep: hidden layers of the deep part.
        users, items: how many are known.
        hot: genres of a row: none.
        rows: rows to learn from.
    """

    width: int
    deep: tuple[int, ...]
    users: int
    items: int
    rows: int
    hot: int = 0
    epochs: int = 1
    batch: int = 256
    seed: int = 2


SMALL = Sizes(width=8, deep=(32, 16), users=800, items=300, rows=8_000)
FULL = Sizes(width=128, deep=(2048, 1024, 512, 256), users=1_000_000, items=100_000, rows=2_000_000, batch=16_384)


def wide_and_deep(sizes: Sizes, tables: Sequence[int]) -> Any:
    """The model: codes [rows, 3 + crosses] int64 and numbers [rows, 2] -> click [rows, 1]."""
    import keras
    from keras import layers

    codes = keras.Input((len(tables),), dtype="int64", name="codes")
    numbers = keras.Input((len(NUMBERS),), name="numbers")
    each = [codes[:, at] for at in range(len(tables))]
    wide = [layers.Embedding(rows, 1, name=f"wide{at}")(each[at]) for at, rows in enumerate(tables)]
    linear = layers.Add()([*wide, layers.Dense(1, name="wide_numbers")(numbers)])
    deep = [layers.Embedding(tables[at], sizes.width, name=f"deep{at}")(each[at]) for at in range(len(CODES))]
    tower = layers.Concatenate()([*deep, numbers])
    for width in sizes.deep:
        tower = layers.Dense(width, activation="relu")(tower)
    click = layers.Activation("sigmoid", name="click")(layers.Add()([linear, layers.Dense(1)(tower)]))
    return keras.Model([codes, numbers], click)


def train(sizes: Sizes, folder: Path) -> Trained:
    """Train it; see `System.train`."""
    import keras

    keras.utils.set_random_seed(sizes.seed)
    data = prepare(sizes, folder, crosses=_CROSSES)
    model = wide_and_deep(sizes, data.tables)
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="binary_crossentropy")
    given = {name: data.inputs[name] for name in ("codes", "numbers")}
    model.fit(given, data.clicked, epochs=sizes.epochs, batch_size=sizes.batch, verbose=0)

    def ask(rows: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        return np.asarray(model([rows["codes"], rows["numbers"]], training=False))

    return data.trained("wide_deep", model, ("codes", "numbers"), ask)


SYSTEM = System(
    "wide_deep",
    "Wide & Deep",
    "best practices 4.2, deep learning part 2",
    "crossed ids, look-ups of one weight each beside an MLP, Keras",
    {"small": SMALL, "full": FULL},
    train,
)
