"""Wide & Deep once more, in Keras: the BiGRU is Keras's own, and padding is masked by the embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.toss_ctr.folds import Features, Fold
from examples.toss_ctr.rows import CODES, NUMBERS
from examples.toss_ctr.sizes import Sizes

__all__ = ["ask", "train", "wide_and_deep"]

_CHUNK = 4096  # rows that are asked about at once


def wide_and_deep(sizes: Sizes, tables: tuple[int, ...]) -> Any:
    """The model: codes [rows, CODES] and seq [rows, length] int64, numbers [rows, NUMBERS] -> click, click_margin."""
    import keras
    from keras import layers

    codes = keras.Input((len(CODES),), dtype="int64", name="codes")
    numbers = keras.Input((len(NUMBERS),), name="numbers")
    seq = keras.Input((sizes.length,), dtype="int64", name="seq")
    each = [codes[:, at] for at in range(len(CODES))]
    wide = [layers.Embedding(rows, 1)(code) for rows, code in zip(tables, each, strict=False)]
    linear = layers.Add()([*wide, layers.Dense(1)(numbers)])
    items = layers.Embedding(tables[-1], sizes.width, mask_zero=True)(seq[:, : sizes.short])
    states = layers.Bidirectional(layers.GRU(sizes.state))(items)
    deep = [layers.Embedding(rows, sizes.width)(code) for rows, code in zip(tables, each, strict=False)]
    tower = layers.Concatenate()([*deep, numbers, layers.Dense(sizes.projected)(states)])
    for width in sizes.deep:
        tower = layers.Dense(width, activation="relu")(tower)
    logit = layers.Add(name="click_margin")([linear, layers.Dense(1)(tower)])
    return keras.Model([codes, numbers, seq], [layers.Activation("sigmoid", name="click")(logit), logit])


def train(sizes: Sizes, fold: Fold, clicked: NDArray[np.float32], seed: int) -> Any:
    """Train it on the other folds' rows; its weights are averaged over the last half of its steps."""
    import keras

    keras.utils.set_random_seed(seed)
    model = wide_and_deep(sizes, fold.tables)
    optimizer = keras.optimizers.Adam(sizes.net_rate, use_ema=True, ema_momentum=0.99)
    learner = keras.Model(model.inputs, model.outputs[0])  # its probability is what it learns by
    learner.compile(optimizer=optimizer, loss="binary_crossentropy", jit_compile=False)
    yes = clicked[fold.learn]
    weights = np.where(yes > 0, (yes == 0).sum() / (yes > 0).sum(), 1.0)
    learner.fit(
        fold.features.of_net(fold.learn),
        yes[:, None],
        sample_weight=weights,
        epochs=sizes.swa_epochs,
        batch_size=sizes.batch,
        verbose=0,
    )
    optimizer.finalize_variable_values(learner.trainable_variables)
    return model


def ask(model: Any, features: Features, rows: Any = slice(None)) -> NDArray[np.float32]:
    """Keras's own answer: the logit of a click, [rows]."""
    given = features.of_net(rows)
    parts = [
        np.asarray(model({name: values[at : at + _CHUNK] for name, values in given.items()}, training=False)[1])[:, 0]
        for at in range(0, len(given["codes"]), _CHUNK)
    ]
    return np.concatenate([np.empty(0, np.float32), *parts])
