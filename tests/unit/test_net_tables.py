"""Large tensors of nets lie in files from the framework's memory on: never in a protobuf, and never twice in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tristage.columns import Column
from tristage.errors import ArtifactError
from tristage.export.check import open_model
from tristage.export.lower import lower
from tristage.export.net import read_net
from tristage.export.place import place
from tristage.export.tables import LARGE, externalize, read_tensor
from tristage.stack import ListInput, NetStep, Stack

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
nn = torch.nn

ROWS, WIDTH = 30_000, 16
WORDS = {"words": ListInput(9, 0)}


class Users(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.top = nn.Embedding(ROWS, WIDTH), nn.Linear(2 * WIDTH, 2)

    def forward(self, user: Any, tags: Any) -> Any:
        return self.top(torch.cat([self.users(user), self.users(tags).mean(1)], 1))


def torch_net() -> Any:
    torch.manual_seed(1)
    batch = torch.export.Dim("rows", min=1, max=4096)
    examples = (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64))
    return torch.export.export(Users().eval(), examples, dynamic_shapes=({0: batch}, {0: batch}))


def keras_net() -> Any:
    keras.utils.set_random_seed(1)
    user, tags = keras.Input((), dtype="int64", name="user"), keras.Input((3,), dtype="int64", name="tags")
    users = keras.layers.Embedding(ROWS, WIDTH)
    return keras.Model(
        [user, tags], keras.layers.Dense(2)(keras.layers.Concatenate()([users(user), keras.ops.mean(users(tags), 1)]))
    )


def artifact(kind: str, folder: Path) -> Any:
    if kind == "torch":
        return torch_net()
    if kind == "keras":
        return keras_net()
    if kind == "keras file":
        keras_net().save(folder / "net.keras")
        return folder / "net.keras"
    if kind == "saved model":
        keras_net().export(folder / "net", verbose=False)
        return folder / "net"
    made = read_net("nn", torch_net()).model
    if kind == "onnx":
        return made
    onnx.save_model(made, folder / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=1024)
    return folder / "net.onnx"


KINDS = ("torch", "keras", "keras file", "saved model", "onnx", "onnx file")


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_a_file_and_answers_as_the_framework(kind: str, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    net = artifact(kind, tmp_path)
    stack = Stack("s", {"nn": NetStep(net, {"user": "user", "tags": ("a", "b", "c")})}, {"y": "nn.score0"})
    lowered = lower(stack, {name: Column(name, "int64") for name in ("user", "a", "b", "c")}, tables=tables)
    body: Any = lowered.steps[0].body
    (table,) = [t for t in body.model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert body.model.ByteSize() < 20_000
    assert [file.stat().st_size for file in tables.iterdir()] == [ROWS * WIDTH * 4]
    assert read_tensor(table, tables).shape == (ROWS, WIDTH)
    placement = place(lowered, 64)
    graph = open_model(placement.models[0], tables)
    draw = np.random.default_rng(0)
    for rows in (0, 1, 40):
        user, tags = draw.integers(0, ROWS, rows), draw.integers(0, ROWS, (rows, 3))
        given = {"user": user[:, None], **{name: tags[:, [i]] for i, name in enumerate("abc")}}
        answers = next(iter(graph.run(given).values()))
        if rows:
            wanted = body.predict({"user": user, "tags": tags})[0][:, [0]]
            np.testing.assert_allclose(answers, wanted, atol=1e-6)
        assert answers.shape == (rows, 1)


class Scaled(tf.Module):
    """Variables of every kind of use: gathered, multiplied with, through functions that are called twice, in a loop."""

    def __init__(self) -> None:
        super().__init__()
        draw = tf.random.Generator.from_seed(3)
        self.table = tf.Variable(draw.normal((ROWS, WIDTH)))
        self.other = tf.Variable(draw.normal((ROWS + 1, WIDTH)))
        self.dense = tf.Variable(draw.normal((WIDTH, 17_000)))
        self.step = tf.Variable(0.5)

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH]), tf.TensorSpec([None], tf.int64)])
    def look(self, values: Any, ids: Any) -> Any:
        return values + tf.gather(self.table, ids) + tf.nn.embedding_lookup(self.other, ids)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "ids")])
    def __call__(self, ids: Any) -> Any:
        values = self.look(self.look(tf.zeros((tf.size(ids), WIDTH)), ids), ids // 2)
        for _ in tf.range(3):
            values = tf.tanh(values) * self.step + tf.gather(self.table, ids)
        return tf.matmul(values, self.dense)[:, :5] + tf.cast(tf.shape(self.table)[0], tf.float32)


class Counts(tf.Module):
    """Writes to its table, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(tf.ones((ROWS, WIDTH)))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "ids")])
    def __call__(self, ids: Any) -> Any:
        self.table.scatter_add(tf.IndexedSlices(tf.ones((tf.size(ids), WIDTH)), ids))
        return tf.gather(self.table, ids)


def test_variables_of_a_saved_model_that_functions_and_loops_read(tmp_path: Path) -> None:
    module = Scaled()
    tf.saved_model.save(module, str(tmp_path / "net"), signatures=module.__call__.get_concrete_function())
    tables = tmp_path / "tables"
    tables.mkdir()
    net = read_net("nn", tmp_path / "net", tables)
    assert sorted(file.stat().st_size for file in tables.iterdir()) == sorted(
        [ROWS * WIDTH * 4, (ROWS + 1) * WIDTH * 4, WIDTH * 17_000 * 4]
    )
    onnx.save_model(net.model, tables / "net.onnx")
    session = onnxruntime.InferenceSession(tables / "net.onnx")
    for rows in (1, 3, 200):
        given = {"ids": np.random.default_rng(rows).integers(0, ROWS, rows)}
        (answers,) = session.run(None, given)
        np.testing.assert_allclose(answers, net.predict(given)[0], rtol=1e-5)
        np.testing.assert_allclose(answers, module(tf.constant(given["ids"])).numpy(), rtol=1e-5)


def test_a_recurrence_of_a_saved_model_is_found_as_in_keras_itself(tmp_path: Path) -> None:
    keras.utils.set_random_seed(2)
    words = keras.Input((9,), dtype="int64", name="words")
    states = keras.layers.Bidirectional(keras.layers.GRU(8))(keras.layers.Embedding(ROWS, WIDTH)(words))
    model = keras.Model(words, keras.layers.Dense(2)(states))
    model.export(tmp_path / "net", verbose=False)
    found = []
    for number, artifact in enumerate((model, tmp_path / "net")):
        tables = tmp_path / f"tables{number}"
        tables.mkdir()
        stack = Stack("s", {"nn": NetStep(artifact, {"words": "words"})}, {"y": "nn.score0"}, inputs=WORDS)
        lowered = lower(stack, {"words": Column("words", "int64", 9, 0)}, tables=tables)
        body: Any = lowered.steps[0].body
        found.append([(each.rewrite, each.done) for each in body.rewritten])
        given = {"words": np.random.default_rng(1).integers(-ROWS, ROWS, (40, 9))}
        answers = open_model(place(lowered, 64).models[0], tables).run(given)["y"]
        np.testing.assert_allclose(answers, model.predict(given, verbose=0)[:, [0]], atol=1e-5)
    assert found[0] == found[1]
    assert ("recurrence_engine", True) in found[0]


def test_a_saved_model_that_writes_to_a_variable_is_refused(tmp_path: Path) -> None:
    module = Counts()
    tf.saved_model.save(module, str(tmp_path / "net"), signatures=module.__call__.get_concrete_function())
    with pytest.raises(ArtifactError, match="step nn: .*cannot"):
        read_net("nn", tmp_path / "net", tmp_path)


def test_equal_tables_are_one_file_whoever_wrote_them(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((ROWS, WIDTH), np.float32)
    first, second = externalize("a", values, tmp_path), externalize("b", values.copy(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(read_tensor(first, tmp_path), read_tensor(second, tmp_path))
    small = externalize("c", values[:4], tmp_path)
    assert small.raw_data
    assert values[:4].nbytes < LARGE
    # what is not contiguous is written row by row all the same
    np.testing.assert_array_equal(read_tensor(externalize("d", values.T, tmp_path), tmp_path), values.T)


MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {here!r})
import test_net_tables as made
from tristage.export.net import read_net

def status(field):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))

made.ROWS = 100
read_net("nn", made.{kind}_net(), Path({folder!r}))
made.ROWS, made.WIDTH = 400_000, 128
net = made.{kind}_net()
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
read_net("nn", net, Path({folder!r}))
print(json.dumps((status("VmHWM") - before) * 1024 / (made.ROWS * made.WIDTH * 4)))
"""


@pytest.mark.parametrize("kind", ["torch", "keras"])
def test_converting_needs_no_second_copy_of_the_table(kind: str, tmp_path: Path) -> None:
    script = MEASURE.format(here=str(Path(__file__).parent), kind=kind, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) < 0.6  # copies of the table, beside the net's own


@pytest.mark.parametrize("kind", ["torch", "keras"])
def test_the_same_bytes_every_time(kind: str, tmp_path: Path) -> None:
    models = [read_net("nn", artifact(kind, tmp_path), tmp_path).model.graph for _ in range(2)]
    files = [[e.value for t in graph.initializer for e in t.external_data if e.key == "location"] for graph in models]
    assert files[0] == files[1]
    assert len(files[0]) == 1
