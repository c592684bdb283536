"""Trains a stack of every kind of step, small enough for a test, with every library for real.

`python tests/tiny_stack.py FOLDER` writes the artifacts, a stack.yaml and golden rows with nulls, unseen categories,
empty and overlong lists.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = ("like", "reply")
STACK = """\
name: tiny
targets: [like, reply]
golden: golden.parquet
inputs:
  tokens: {max_length: 6}
  tags: {max_length: 3}
steps:
  features: {workflow: workflow}
  trees: {forest: "trees/{target}-{bag}.ubj", reads: features}
  grouped: {forest: "grouped/{target}-{group}.json", reads: features, group: features.followers_bucket}
  keras: {net: net.keras, reads: {tokens: features.tokens, user: features.user_id, numeric: "features.n_*"}}
  torch: {net: net.pt2, reads: {tokens: features.tokens, tags: features.tags, numeric: ["features.n_*"]}}
  stage2: {forest: "stage2/{target}.ubj", reads: [features, trees, grouped, keras, torch]}
  score: {mean: [stage2, trees]}
outputs: {like: score.like, reply: score.reply}
"""


def make_rows(count: int, seed: int, new_users: bool) -> Any:
    """Raw rows as a pandas.DataFrame; with `new_users`, users and languages that training never saw."""
    import pandas as pd

    random = np.random.default_rng(seed)
    users = random.zipf(1.5, count).clip(1, 60 if new_users else 40)
    language = random.choice(["en", "de", "日本語", "", None], count, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    followers = np.where(random.random(count) < 0.1, np.nan, random.exponential(800, count).round())
    tokens = [random.integers(1, 50, size).tolist() for size in random.integers(0, 9, count)]
    tags = [
        random.choice(["a", "b", "c", "ü", "new" if new_users else "a"], size).tolist()
        for size in random.integers(0, 5, count)
    ]
    score = np.sin(users) + (language == "en") + np.log1p(np.nan_to_num(followers)) / 5 + random.normal(size=count) / 2
    return pd.DataFrame(
        {
            "user": [f"u{user}" for user in users],
            "language": language,
            "followers": followers,
            "age": random.integers(-3, 4000, count),
            "verified": random.random(count) < 0.2,
            "tokens": tokens,
            "tags": tags,
            "like": (score > 1.2).astype(np.int8),
            "reply": (score + random.normal(size=count) > 2).astype(np.int8),
        }
    )


def fit_workflow(frame: Any, folder: Path) -> Any:
    """A workflow over strings, lists, nulls, targets and arithmetic."""
    import nvtabular as nvt
    from merlin.io import Dataset
    from nvtabular import ops

    user = ["user"] >> ops.Categorify(freq_threshold=3) >> ops.Rename(postfix="_id")
    codes = ["language"] >> ops.Categorify() >> ops.Rename(postfix="_code")
    tags = ["tags"] >> ops.Categorify() >> ops.ListSlice(0, 3)
    tokens = ["tokens"] >> ops.ListSlice(0, 6)
    encoded = ["user", "language", ["user", "language"]] >> ops.TargetEncoding(list(TARGETS), kfold=1, p_smooth=20)
    filled = ["followers"] >> ops.FillMissing(add_binary_cols=True)
    bucket = ["followers"] >> ops.FillMissing() >> ops.Bucketize([200, 900]) >> ops.Rename(postfix="_bucket")
    scaled = (
        ["followers", "age"]
        >> ops.FillMissing()
        >> ops.Clip(min_value=0)
        >> ops.LogOp()
        >> ops.Normalize()
        >> ops.Rename(f=lambda name: f"n_{name}")
    )
    ratio = (
        ["followers"]
        >> ops.LambdaOp(lambda column, rows: column / (rows["age"] + 10.0), dependency=["age"])
        >> ops.Rename(name="ratio")
    )
    workflow = nvt.Workflow(
        user + codes + tags + tokens + encoded + filled + bucket + scaled + ratio + ["age", "verified"]
    )
    workflow.fit(Dataset(frame))
    workflow.save(folder)
    return nvt.Workflow.load(folder)


def train(folder: Path) -> None:
    """Train everything and write it to `folder`."""
    import xgboost as xgb

    train_rows, golden = make_rows(1500, 1, False), make_rows(300, 2, True)
    workflow = fit_workflow(train_rows, folder / "workflow")
    made = workflow.transform(train_rows)
    names = [name for name in made.columns if name not in ("tokens", "tags")]
    numbers = made[names].to_numpy(np.float32)
    predictions = {}

    def forest(path: str, columns: list[str], rows: Any, truth: Any, seed: int) -> Any:
        matrix = xgb.DMatrix(rows, truth, feature_names=columns)
        booster = xgb.train(
            {"objective": "binary:logistic", "max_depth": 4, "seed": seed, "subsample": 0.7, "nthread": 1}, matrix, 8
        )
        (folder / path).parent.mkdir(exist_ok=True)
        booster.save_model(folder / path)
        return booster.inplace_predict(rows, validate_features=False)

    bucket = made["followers_bucket"].to_numpy()
    for target in TARGETS:
        truth = train_rows[target].to_numpy()
        predictions[f"trees.{target}"] = np.mean(
            [forest(f"trees/{target}-{bag}.ubj", names, numbers, truth, bag) for bag in range(2)], 0
        )
        grouped = np.zeros(len(truth), np.float32)
        for group in range(3):
            members = bucket == group
            grouped[members] = forest(
                f"grouped/{target}-{group}.json", names[::-1], numbers[members][:, ::-1].copy(), truth[members], 0
            )
        predictions[f"grouped.{target}"] = grouped
    lists = {name: _padded(made[name], width) for name, width in (("tokens", 6), ("tags", 3))}
    scaled = made[[name for name in names if name.startswith("n_")]].to_numpy(np.float32)
    truth = train_rows[list(TARGETS)].to_numpy(np.float32)
    for name, answers in (
        ("keras", _keras(folder, lists["tokens"], made["user_id"].to_numpy(np.int64), scaled, truth)),
        ("torch", _torch(folder, lists["tokens"], lists["tags"], scaled, truth)),
    ):
        predictions.update({f"{name}.{target}": answers[:, number] for number, target in enumerate(TARGETS)})
    stage2 = np.concatenate([numbers, *(values[:, None] for values in predictions.values())], axis=1)
    for target in TARGETS:
        forest(f"stage2/{target}.ubj", [*names, *predictions], stage2, train_rows[target].to_numpy(), 0)
    golden.to_parquet(folder / "golden.parquet", index=False)
    (folder / "stack.yaml").write_text(STACK, encoding="utf-8")


def _padded(lists: Any, width: int) -> Any:
    padded = np.zeros((len(lists), width), np.int64)
    for row, values in enumerate(lists):
        padded[row, : len(values)] = values[:width]
    return padded


def _keras(folder: Path, tokens: Any, user: Any, numeric: Any, truth: Any) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    inputs = [
        keras.Input((6,), dtype="int64", name="tokens"),
        keras.Input((), dtype="int64", name="user"),
        keras.Input((2,), name="numeric"),
    ]
    text = keras.ops.mean(keras.layers.Embedding(50, 8)(inputs[0]), axis=1)
    wide = keras.layers.Concatenate()([text, keras.layers.Embedding(64, 4)(inputs[1]), inputs[2]])
    hidden = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Dense(16)(wide)))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="sigmoid")(hidden))
    model.compile("adam", "binary_crossentropy")
    model.fit([tokens, user, numeric], truth, epochs=1, verbose=0)
    model.save(folder / "net.keras")
    return np.asarray(model([tokens, user, numeric], training=False))


def _torch(folder: Path, tokens: Any, tags: Any, numeric: Any, truth: Any) -> Any:
    sys.modules.setdefault("triton", None)  # OpenAI's: its LLVM ends a process that has loaded TensorFlow's
    import torch

    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = torch.nn.Embedding(50, 12)
            self.tags = torch.nn.Embedding(16, 3)
            self.gru = torch.nn.GRU(12, 8, batch_first=True)
            self.top = torch.nn.Sequential(
                torch.nn.Linear(13, 16), torch.nn.BatchNorm1d(16), torch.nn.SiLU(), torch.nn.Linear(16, 2)
            )

        def forward(self, tokens: Any, tags: Any, numeric: Any) -> Any:
            last = self.gru(self.text(tokens))[1][0]
            return torch.sigmoid(self.top(torch.cat([last, self.tags(tags).sum(1), numeric], 1)))

    net = Net()
    inputs = tuple(torch.from_numpy(values) for values in (tokens, tags, numeric))
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(5):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy(net(*inputs), torch.from_numpy(truth)).backward()
        optimiser.step()
    net.eval()
    rows = torch.export.Dim("rows", min=1, max=65536)
    program = torch.export.export(net, inputs, dynamic_shapes=({0: rows}, {0: rows}, {0: rows}))
    torch.export.save(program, folder / "net.pt2")
    with torch.inference_mode():
        return net(*inputs).numpy()


def main() -> None:
    """Train aside, then rename, so that a half-trained folder is never found."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    folder = Path(sys.argv[1])
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        train(fresh)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


if __name__ == "__main__":
    main()
