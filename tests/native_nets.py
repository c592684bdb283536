"""Nets of every kind that a framework's own Triton backend takes, and a stack of them with a forest on top."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import torch
import xgboost
from torch import nn

from tristage.stack import ForestStep, ListInput, NetStep, Stack

NUMBERS = ("n0", "n1", "n2")
READS = {"items": ("items",), "user": ("user",), "numeric": NUMBERS, "flag": ("flag",)}
USERS = 20_000


def make_rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What the nets read; lists of pads alone, ids at both ends, infinite and huge numbers among them."""
    draw = np.random.default_rng(seed)
    items = draw.integers(0, 30, (count, 7))
    items[: count // 3] = 0
    numeric = draw.normal(size=(count, 3)).astype(np.float32)
    users = draw.integers(0, USERS, count)
    if count > 5:
        numeric[0, 0], numeric[1, 1], numeric[2, 2], users[3], users[4] = np.inf, -np.inf, 1e30, 0, USERS - 1
    return {"items": items, "user": users, "numeric": numeric, "flag": draw.random(count) < 0.5}


class Sessions(nn.Module):  # type: ignore[misc]
    """A GRU, a table of 2.5 MB, numbers and flags; ids as [rows], and a tensor that is made in between."""

    def __init__(self, wide: int = 2) -> None:
        super().__init__()
        self.items, self.users = nn.Embedding(30, 8, padding_idx=0), nn.Embedding(USERS, 32)
        self.gru, self.norm = nn.GRU(8, 6, batch_first=True), nn.BatchNorm1d(3)
        self.top = nn.Linear(41, wide)

    def forward(self, items: Any, user: Any, numeric: Any, flag: Any) -> Any:
        real = items != 0
        steps = torch.arange(items.shape[1], device=items.device)
        last = torch.where(real, steps, torch.zeros_like(steps)).max(1).values
        states = self.gru(self.items(items))[0]
        state = torch.gather(states, 1, last[:, None, None].expand(-1, 1, 6)).squeeze(1)
        wide = torch.cat([state, self.users(user), self.norm(numeric.clamp(-5, 5))], 1)
        return torch.sigmoid(self.top(wide) + flag.float().unsqueeze(1))


class Several(Sessions):
    """Two answers by name, one of them [rows]; a whole number."""

    def forward(self, items: Any, user: Any, numeric: Any, flag: Any) -> Any:
        both = super().forward(items, user, numeric, flag)
        return {"buy": both[:, 0], "pair": both, "count": (items != 0).sum(1)}


def module(kind: type[nn.Module] = Sessions, **options: int) -> Any:
    """A module in evaluation mode, the same every time."""
    torch.manual_seed(5)
    return kind(**options).eval()


def program(net: Any) -> Any:
    """The module as an ExportedProgram."""
    given = {name: torch.from_numpy(values) for name, values in make_rows(4).items()}
    rows = torch.export.Dim("rows", min=1)
    return torch.export.export(net, (), given, dynamic_shapes={name: {0: rows} for name in given}, strict=False)


def scripted(net: Any) -> Any:
    """The module as TorchScript."""
    return torch.jit.trace(net, example_kwarg_inputs={name: torch.from_numpy(v) for name, v in make_rows(4).items()})


def keras_net(*outputs: str) -> Any:
    """The same kind of net in Keras; several outputs are a dict."""
    keras.utils.set_random_seed(1)
    inputs = {
        "items": keras.Input((7,), dtype="int64", name="items"),
        "user": keras.Input((), dtype="int64", name="user"),
        "numeric": keras.Input((3,), name="numeric"),
        "flag": keras.Input((), dtype="bool", name="flag"),
    }
    state = keras.layers.GRU(6)(keras.layers.Embedding(30, 8, mask_zero=True)(inputs["items"]))
    flag = keras.ops.expand_dims(keras.ops.cast(inputs["flag"], "float32"), 1)
    numeric = keras.layers.BatchNormalization()(keras.ops.clip(inputs["numeric"], -5, 5))
    wide = keras.layers.Concatenate()([state, keras.layers.Embedding(USERS, 32)(inputs["user"]), numeric, flag])
    made = {name: keras.layers.Dense(2, activation="sigmoid", name=f"{name}_of")(wide) for name in outputs}
    return keras.Model(list(inputs.values()), made if len(made) > 1 else next(iter(made.values())))


class Signed(tf.Module):  # type: ignore[misc]
    """A SavedModel whose signature is its author's: an answer of [rows], and ids that are int32."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(np.random.default_rng(2).normal(size=(USERS, 32)).astype(np.float32))

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.int32, "user"), tf.TensorSpec([None, 3], tf.float32, "numeric")]
    )
    def serve(self, user: Any, numeric: Any) -> Any:
        """A number a row, and two."""
        looked = tf.gather(self.table, user)
        score = tf.sigmoid(tf.reduce_sum(looked, 1) + tf.reduce_sum(tf.clip_by_value(numeric, -5, 5), 1))
        return {"score": score, "two": looked[:, :2]}


def saved(folder: Path) -> Path:
    """The folder of a SavedModel."""
    net = Signed()
    tf.saved_model.save(net, str(folder), signatures={"serving_default": net.serve})
    return folder


def write_golden(folder: Path, count: int = 300) -> Path:
    """Golden rows of all that the nets read."""
    rows = make_rows(count, 9)
    columns = {name: pa.array(list(values)) for name, values in rows.items() if name != "numeric"}
    columns |= {name: pa.array(rows["numeric"][:, place]) for place, name in enumerate(NUMBERS)}
    path = folder / "golden.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def stack(folder: Path, backend: str) -> Stack:
    """Every kind of net for a backend, a forest over two of them and a net as ONNX, in one stack."""
    examples = make_rows(3)
    if backend == "pytorch":
        torch.jit.save(scripted(module()), folder / "script.pt")
        torch.export.save(program(module(wide=1)), folder / "program.pt2")
        nets: dict[str, NetStep] = {
            "module": NetStep(module(), READS, examples=examples, backend=backend),
            "several": NetStep(module(Several), READS, examples=examples, backend=backend),
            "program": NetStep(folder / "program.pt2", READS, backend=backend),
            "script": NetStep(folder / "script.pt", READS, examples=examples, backend=backend),
        }
        columns = {"module": ("score0", "score1"), "several": ("buy", "pair0", "pair1", "count")}
        columns |= {"program": ("score",), "script": ("score0", "score1")}
    else:
        keras_net("one").save(folder / "net.keras")
        nets = {
            "model": NetStep(keras_net("buy", "like"), READS, backend=backend),
            "file": NetStep(folder / "net.keras", READS, backend=backend),
            "folder": NetStep(saved(folder / "saved"), {"user": ("user",), "numeric": NUMBERS}, backend=backend),
        }
        columns = {"model": ("buy0", "buy1", "like0", "like1"), "file": ("score0", "score1")}
        columns |= {"folder": ("score", "two0", "two1")}
    nets["plain"] = NetStep(module(), READS, examples=examples)
    first, second = list(nets)[0], list(nets)[1]
    draw = np.random.default_rng(4)
    x = draw.random((500, len(columns[first]) + len(columns[second]))).astype(np.float32)
    forest = xgboost.train({"max_depth": 3, "nthread": 1}, xgboost.DMatrix(x, x[:, 0] > x[:, 1]), 5)
    steps: dict[str, Any] = {**nets, "top": ForestStep(forest, (first, second))}
    columns |= {"plain": ("score0", "score1"), "top": ("score",)}
    outputs = {f"{step}_{column}": f"{step}.{column}" for step in steps for column in columns[step]}
    return Stack("nets", steps, outputs, inputs={"items": ListInput(7)}, golden=write_golden(folder))
