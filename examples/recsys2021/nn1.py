"""NN1 in Keras: mean-pooled tokens of a table of its own, a user table shared by author and reader, dot products."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it greets on stderr, and makes sums depend on the processor

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from examples.recsys2021.sizes import Sizes

__all__ = ["CATEGORIES", "build", "fit"]

CATEGORIES: Mapping[str, int] = {"c_tweet_type": 2, "c_language": 10, "c_media": 4, "c_weekday": 4}
"""The categories it embeds and their widths; the input of `c_tweet_type` is named `tweet_type`, and so on."""


def build(sizes: Sizes, users: int, cardinalities: Mapping[str, int], numbers: int) -> Any:
    """The untrained net.

    Args:
        sizes: how large everything is.
        users: rows of the user table.
        cardinalities: rows of each table of CATEGORIES.
        numbers: width of the input `numeric`.

    Returns:
        A `keras.Model`: tokens [rows, tokens] int64, a_user, b_user, tweet_type, language, media, weekday [rows] int64,
        numeric [rows, numbers] float32 -> [rows, 4] probabilities.
    """
    tokens = keras.Input((sizes.tokens,), dtype="int64", name="tokens")
    a_user, b_user = (keras.Input((), dtype="int64", name=name) for name in ("a_user", "b_user"))
    kinds = {name: keras.Input((), dtype="int64", name=name[2:]) for name in CATEGORIES}
    numeric = keras.Input((numbers,), dtype="float32", name="numeric")

    words = layers.Embedding(sizes.vocabulary, sizes.nn1_word, name="words")(tokens)
    real = ops.expand_dims(ops.cast(ops.not_equal(tokens, 0), "float32"), -1)
    text = ops.sum(words * real, axis=1) / ops.maximum(ops.sum(real, axis=1), 1.0)
    table = layers.Embedding(users, sizes.nn1_user, name="users")
    author, reader = table(a_user), table(b_user)
    categories = [
        layers.Embedding(cardinalities[name], width, name=name)(kinds[name]) for name, width in CATEGORIES.items()
    ]
    tweet = layers.Dense(sizes.nn1_user, "tanh", name="tweet")(layers.Concatenate()([text, *categories]))
    reads = layers.Dense(sizes.nn1_user, "tanh", name="reader")(reader)
    dots = [ops.sum(author * reader, axis=1, keepdims=True), ops.sum(reads * tweet, axis=1, keepdims=True)]
    top = layers.Concatenate()([text, author, reader, *categories, numeric, *dots])
    for width in sizes.nn1_top:
        top = layers.Dense(width)(top)
        top = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(top))
    answer = layers.Dense(4, "sigmoid", name="engagements")(layers.Concatenate()([top, *dots]))
    return keras.Model([tokens, a_user, b_user, *kinds.values(), numeric], answer, name="nn1")


def fit(
    sizes: Sizes,
    seed: int,
    inputs: Mapping[str, NDArray[Any]],
    targets: NDArray[Any],
    cardinalities: Mapping[str, int],
    step: Callable[[], None],
) -> Any:
    """Train one net on rows given by input name.

    Args:
        sizes: how large everything is.
        seed: seed of the weights and of the order of the rows.
        inputs: the net's inputs by name.
        targets: [rows, 4], 0 or 1.
        cardinalities: rows of the tables, that of the users as "nn1".
        step: called after each batch.
    """
    _one_thread()
    keras.utils.set_random_seed(seed)
    model = build(sizes, cardinalities["nn1"], cardinalities, inputs["numeric"].shape[1])
    steps = sizes.nn1_epochs * -(-len(targets) // sizes.nn1_batch)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps, alpha=0.05)
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy", jit_compile=False)
    tell = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: step())
    model.fit(
        dict(inputs),
        targets.astype(np.float32),
        batch_size=sizes.nn1_batch,
        epochs=sizes.nn1_epochs,
        verbose=0,
        callbacks=[tell],
    )
    return keras.Model(model.inputs, model.outputs, name="nn1")  # without the optimizer, which is twice as large


def _one_thread() -> None:
    """PyTorch's nets train beside this one."""
    import tensorflow

    with contextlib.suppress(RuntimeError):  # too late if TensorFlow has worked before
        tensorflow.config.threading.set_intra_op_parallelism_threads(1)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
