"""Trains models, joins them into graphs of Merlin Systems, and writes what Merlin and tristage make of each.

`.venv-merlin/bin/python tests/merlin/graphs.py FOLDER` writes `golden.parquet`, raw rows that training never saw, and
for every graph NAME: `NAME.parquet`, what Merlin Systems' own executor answers for them, and `NAME/`, the repository
that Ensemble.export wrote. `NAME.memory/` is what tristage made of a graph in memory, `stacks.json` says what
`Stack.from_merlin` reads of each, and `refused.json` what it says of graphs that cannot be carried.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # Merlin Systems saves Keras 2's models
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # PredictPyTorch reads TorchScript as torch did before 2.6
warnings.simplefilter("ignore")
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]  # OpenAI's: its LLVM ends a process with TensorFlow's

import lightgbm  # noqa: E402
import numpy as np  # noqa: E402
import nvtabular as nvt  # noqa: E402
import pandas as pd  # noqa: E402
import tensorflow as tf  # noqa: E402
import torch  # noqa: E402
import xgboost as xgb  # noqa: E402
from merlin.dag import DataFormats  # noqa: E402
from merlin.dag.executors import LocalExecutor  # noqa: E402
from merlin.dag.runtime import Runtime  # noqa: E402
from merlin.io import Dataset  # noqa: E402
from merlin.schema import ColumnSchema, Schema  # noqa: E402
from merlin.systems.dag import Ensemble  # noqa: E402
from merlin.systems.dag.ops.fil import PredictForest  # noqa: E402
from merlin.systems.dag.ops.pytorch import PredictPyTorch  # noqa: E402
from merlin.systems.dag.ops.session_filter import FilterCandidates  # noqa: E402
from merlin.systems.dag.ops.softmax_sampling import SoftmaxSampling  # noqa: E402
from merlin.systems.dag.ops.tensorflow import PredictTensorflow  # noqa: E402
from merlin.systems.dag.ops.unroll_features import UnrollFeatures  # noqa: E402
from merlin.systems.dag.ops.workflow import TransformWorkflow  # noqa: E402
from merlin.table import TensorTable  # noqa: E402
from sklearn.ensemble import RandomForestRegressor  # noqa: E402

from tristage.errors import TristageError  # noqa: E402
from tristage.export import export  # noqa: E402
from tristage.export.merlin import MerlinNote  # noqa: E402
from tristage.stack import ForestStep, ListInput, Stack  # noqa: E402

RAW = ["user", "item", "price", "age"]
NET = ["user_id", "item_id", "n_price", "n_age"]


def rows(count: int, seed: int, users: int) -> pd.DataFrame:
    """Raw rows; with more users than training saw, unseen ones."""
    random = np.random.default_rng(seed)
    user, item = random.integers(0, users, count), random.zipf(1.6, count).clip(1, 90)
    price = np.where(random.random(count) < 0.1, np.nan, random.exponential(8, count))
    score = np.sin(user) + np.cos(item) - np.nan_to_num(price) / 20 + random.normal(size=count) / 3
    return pd.DataFrame(
        {
            "user": [f"u{number}" for number in user],
            "item": item,
            "price": price,
            "age": random.integers(-5, 90, count),
            "tokens": list(random.integers(0, 50, (count, 4))),
            "click": (score > 0.3).astype(np.int8),
        }
    )


def fit(frame: pd.DataFrame, folder: Path) -> Any:
    """A workflow as Merlin can serve it: without the target once it is fitted."""
    ids = (
        ["user", "item"] >> nvt.ops.Categorify(freq_threshold=2, out_path=str(folder)) >> nvt.ops.Rename(postfix="_id")
    )
    scaled = (
        ["price", "age"]
        >> nvt.ops.FillMissing()
        >> nvt.ops.Clip(min_value=0)
        >> nvt.ops.Normalize(out_dtype=np.float32)
        >> nvt.ops.Rename(f=lambda name: f"n_{name}")
    )
    workflow = nvt.Workflow(ids + scaled + ["click"]).fit(Dataset(frame))
    workflow.remove_inputs(["click"])
    return workflow


def keras_net(features: pd.DataFrame, truth: Any, *outputs: str, shape: tuple[int, ...] = ()) -> Any:
    """A Keras 2 net that takes a dict of scalars, as Merlin calls it."""
    tf.keras.utils.set_random_seed(0)
    inputs = {name: tf.keras.Input(shape, dtype=features[name].dtype, name=name) for name in NET}
    ids = [tf.keras.layers.Flatten()(tf.keras.layers.Embedding(128, 4)(inputs[name])) for name in NET[:2]]
    numbers = [tf.keras.layers.Reshape((1,))(inputs[name]) for name in NET[2:]]
    wide = tf.keras.layers.Concatenate()([*ids, *numbers])
    hidden = tf.keras.layers.BatchNormalization()(tf.keras.layers.Dense(16, activation="relu")(wide))
    made = [tf.keras.layers.Dense(1, activation="sigmoid", name=name)(hidden) for name in outputs]
    model = tf.keras.Model(inputs, made[0] if len(made) == 1 else dict(zip(outputs, made, strict=True)))
    model.compile("adam", "binary_crossentropy")
    model.fit(dict(features), truth if len(made) == 1 else dict.fromkeys(outputs, truth), epochs=1, verbose=0)
    return model


class TorchNet(torch.nn.Module):
    """A net that takes a dict of scalars, as Merlin calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = torch.nn.Embedding(128, 4), torch.nn.Embedding(128, 4)
        self.norm, self.top = torch.nn.BatchNorm1d(10), torch.nn.Linear(10, 2)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        numbers = torch.stack([x["n_price"], x["n_age"]], 1)
        wide = torch.cat([self.user(x["user_id"]), self.item(x["item_id"]), numbers], 1)
        return torch.sigmoid(self.top(self.dropout(self.norm(wide))))


class TokenNet(torch.nn.Module):
    """A net that takes lists of one length, and answers with two tensors, as Triton wants two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.gru = torch.nn.Embedding(50, 6), torch.nn.GRU(6, 3, batch_first=True)

    def forward(self, x: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        last = self.gru(self.text(x["tokens"]))[1][0]
        return last.sum(1), torch.sigmoid(last[:, :1])


def torch_net(features: pd.DataFrame) -> Any:
    """TorchScript of a net whose batch statistics and dropout are awake: serving must put them to sleep."""
    torch.manual_seed(0)
    net = TorchNet()
    net({name: torch.from_numpy(features[name].to_numpy()) for name in NET})
    return torch.jit.script(net.eval())


def forest(names: list[str], features: Any, truth: Any, **parameters: Any) -> Any:
    """A Booster without names of features, as Merlin's executor wants it: it hands columns over by position."""
    settings = {"objective": "binary:logistic", "max_depth": 4, "nthread": 1, "seed": 0, **parameters}
    return xgb.train(settings, xgb.DMatrix(features[names].to_numpy(np.float32), truth), 8)


def light(features: pd.DataFrame, truth: Any) -> Any:
    """A LightGBM Booster, which always knows names of features: here those of other columns than it is given."""
    data = lightgbm.Dataset(features[NET].set_axis(list("abcd"), axis=1), truth)
    return lightgbm.train({"objective": "binary", "num_leaves": 8, "verbose": -1, "num_threads": 1}, data, 8)


def answers_of(ensemble: Any, frame: pd.DataFrame) -> pd.DataFrame:
    """What Merlin Systems answers, in this process; operators hand tables of tensors on, as they do in Triton."""
    executor = LocalExecutor()
    executor.target_format = DataFormats.NUMPY_TENSOR_TABLE
    made = ensemble.transform(TensorTable.from_df(frame), runtime=Runtime(executor))
    columns = {name: np.asarray(column.values) for name, column in made.items()}
    flat = {}
    for name, values in columns.items():
        parts = values.reshape(len(values), -1).T
        flat.update({name if len(parts) == 1 else f"{name}_{at}": part for at, part in enumerate(parts)})
    return pd.DataFrame(flat)


class Graphs:
    """Models trained on the same features, and the graphs that are made of them.

    Attributes:
        carried: graphs that become stacks, by name.
        memory: graphs that tristage exports from memory: one that is carried, one of TargetEncoding, which Merlin's
            own executor cannot run without the target, and one of a forest that Merlin writes for an old Treelite.
        lists: a graph of lists, which Merlin's own executor cannot run.
        read: graphs that become stacks otherwise than they stand there; only looked at.
        refused: makes a graph that cannot be carried, by what it is refused for.
    """

    def __init__(self, frame: pd.DataFrame, folder: Path) -> None:
        self.workflow = workflow = fit(frame, folder / "categories")
        features, truth = workflow.transform(frame), frame["click"].to_numpy()
        schema = workflow.output_schema
        keras, script = keras_net(features, truth, "click"), torch_net(features)
        keras.save(folder / "saved_model")
        script.save(folder / "script.pt")
        booster = forest(NET, features, truth)
        multi = forest(NET, features, frame["age"].to_numpy() % 3, objective="multi:softprob", num_class=3)
        scores = Schema([ColumnSchema("torch/click", dtype=np.float32), ColumnSchema("torch_buy", dtype=np.float32)])
        root, own = RAW >> TransformWorkflow(workflow), RAW >> TransformWorkflow(workflow)

        def trees(model: Any = booster, **how: Any) -> Any:
            return root >> PredictForest(model, schema, **how)

        def net(model: Any) -> Any:
            return root >> PredictPyTorch(model, Schema(list(schema)), scores)

        paths = trees() + (root >> PredictTensorflow(str(folder / "saved_model"))) + net(str(folder / "script.pt"))
        wide = features.assign(output__0=booster.inplace_predict(features[NET].to_numpy(np.float32)))
        wide["click"] = keras.predict(dict(features), verbose=0)[:, 0]
        torch_answers = script({name: torch.from_numpy(features[name].to_numpy()) for name in NET}).detach().numpy()
        wide["torch/click"], wide["torch_buy"] = torch_answers.T
        stage2 = forest(list(wide), wide, truth, tree_method="exact")  # splits between predictions, never on one
        answers = Schema([ColumnSchema(name, dtype=np.float32) for name in wide.columns[len(NET) :]])
        self.carried = {
            "mixed": trees() + (root >> PredictTensorflow(keras)) + net(script),
            "stacked": (root + paths) >> PredictForest(stage2, schema + answers),
            "classes": own >> PredictForest(multi, schema, output_class=True, predict_proba=True),
            "tasks": own[NET] >> PredictTensorflow(keras_net(features, truth, "view/like", "buy", shape=(1,))),
            "features": root,
            "leaves": own >> PredictForest(light(features, truth), schema),
            "last": trees(forest(NET, features, 1 - truth)) + trees(output_class=True, predict_proba=True) + ["age"],
        }
        encode = ["item"] >> nvt.ops.TargetEncoding(["click"], kfold=5, p_smooth=20, out_path=str(folder / "encoding"))
        encoding = nvt.Workflow(encode).fit(Dataset(frame))
        random_forest = RandomForestRegressor(5, max_depth=4, random_state=0).fit(features[NET].to_numpy(), truth)
        self.memory = {
            "mixed": self.carried["mixed"],
            "encoded": ["item"] >> TransformWorkflow(nvt.Workflow(encode).fit(Dataset(frame))),
            "averaged": own >> PredictForest(random_forest, schema),
        }
        named = xgb.train({"nthread": 1}, xgb.DMatrix(features[NET[::-1]], truth), 2)
        ragged = nvt.Workflow(["tokens"] >> nvt.ops.ListSlice(0, 4)).fit(Dataset(frame))
        same = nvt.Workflow(["age"] >> nvt.ops.Clip(min_value=0)).fit(Dataset(frame))
        tokens = nvt.Workflow(["tokens"] >> nvt.ops.ListSlice(0, 4, pad=True)).fit(Dataset(frame))
        text = ["tokens"] >> TransformWorkflow(tokens)
        self.lists_schema = tokens.input_schema
        self.lists = text >> token_net((None, 4))
        self.read = {"named": trees(named), "same": ["age"] >> TransformWorkflow(same)}
        self.refused = {
            "SoftmaxSampling": lambda: trees() >> SoftmaxSampling(relevance_col="output__0"),
            "UnrollFeatures": lambda: root >> UnrollFeatures("user_id", ["n_age"]),
            "FilterCandidates": lambda: root["item_id"] >> FilterCandidates(filter_out=root["user_id"]),
            "labels": lambda: trees(output_class=True),
            "LogOp": lambda: root[["n_age"]] >> nvt.ops.LogOp(),
            "TargetEncoding": lambda: RAW >> TransformWorkflow(encoding, label_columns=["click"]),
            "lists": lambda: self.lists,
            "ragged": lambda: ["tokens"] >> TransformWorkflow(ragged) >> token_net((None, None)),
            "two workflows": lambda: root >> nvt.ops.Rename(f=renamed) >> TransformWorkflow(same),
        }


def token_net(dims: tuple[int | None, ...]) -> Any:
    """A net of lists."""
    torch.manual_seed(0)
    scores = Schema([ColumnSchema(name, dtype=np.float32) for name in ("sum", "score")])
    tokens = ColumnSchema("tokens", dtype=np.int64, dims=dims)
    return PredictPyTorch(torch.jit.script(TokenNet().eval()), Schema([tokens]), scores)


def renamed(name: str) -> str:
    """A feature under the name of a raw column."""
    return "age" if name == "n_age" else name


def described(graph: Any, **options: Any) -> Mapping[str, Any]:
    """What a graph becomes: steps, by kind, what forests read, outputs, and what is said of them."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", MerlinNote)
        stack = Stack.from_merlin(graph, **options)
    return {
        "steps": {name: type(step).__name__ for name, step in stack.steps.items()},
        "reads": {name: step.reads for name, step in stack.steps.items() if isinstance(step, ForestStep)},
        "outputs": dict(stack.outputs),
        "notes": [str(note.message) for note in notes if note.category is MerlinNote],
    }


def main() -> None:
    """Write everything into the folder that the command line names."""
    folder = Path(sys.argv[1])
    folder.mkdir()
    every = rows(400, 2, 70).drop(columns="click")
    every.to_parquet(folder / "golden.parquet", index=False)
    golden = every[RAW]
    made = Graphs(rows(2000, 1, 50), folder)
    stacks: dict[str, Any] = {name: {"node": described(node)} for name, node in made.read.items()}
    ensembles: dict[str, Any] = {}
    for name, node in made.carried.items():
        stacks[name] = {"node": described(node)}
        ensembles[name] = Ensemble(node, made.workflow.input_schema)
        stacks[name]["ensemble"] = described(ensembles[name])
        answers_of(ensembles[name], golden).to_parquet(folder / f"{name}.parquet", index=False)
    for name, node in made.memory.items():
        export(Stack.from_merlin(node, golden=folder / "golden.parquet"), folder / f"{name}.memory")
    averaged = Ensemble(made.memory["averaged"], made.workflow.input_schema)
    answers_of(averaged, golden).to_parquet(folder / "averaged.parquet", index=False)
    messages = {}
    for name, make in made.refused.items():
        try:
            messages[name] = repr(Stack.from_merlin(make(), inputs={} if name == "lists" else {"tokens": ListInput(4)}))
        except TristageError as error:
            messages[name] = str(error)
    ensembles["lists"], stacks["lists"] = Ensemble(made.lists, made.lists_schema), {}
    for name, ensemble in ensembles.items():  # Merlin's export leaves operators in the graph that only Triton can run
        ensemble.export(str(folder / name))
        stacks[name]["exported"] = described(ensemble, inputs={"tokens": ListInput(4)} if name == "lists" else {})
    averaged.export(str(folder / "averaged"))
    (folder / "stacks.json").write_text(json.dumps(stacks, indent=1), encoding="utf-8")
    (folder / "refused.json").write_text(json.dumps(messages, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
