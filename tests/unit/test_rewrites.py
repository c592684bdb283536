"""Exact rewrites: the same answers to 1e-6, whoever wrote the graph; what was saved is said, and what was not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tristage.columns import Column
from tristage.errors import StackError
from tristage.export.check import open_model
from tristage.export.lower import lower
from tristage.export.net import read_net
from tristage.export.place import fuse, place
from tristage.export.rewrites import REWRITES
from tristage.export.rewrites.embeddings import MOST_GROWTH
from tristage.stack import ListInput, NetStep, Stack

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
nn, layers = torch.nn, keras.layers

WORDS, STEPS, WIDTH = 60, 6, 10
ALL = [rewrite.name for rewrite in REWRITES]


class Served:
    """A net as it is served, on raw columns named as its inputs, and what its rewrites found."""

    def __init__(self, artifact: Any, folder: Path, rewrites: tuple[str, ...] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        columns = {
            "tokens": Column("tokens", "int64", STEPS, 0),
            "other": Column("other", "int64", STEPS, 0),
            "numeric": Column("numeric", "float32", WIDTH, 0.0),
            "user": Column("user", "int64"),
            "item": Column("item", "int64"),
        }
        net = read_net("nn", artifact)
        names = [tensor.name for tensor in net.inputs]
        lists = {name: ListInput(column.length) for name, column in columns.items() if column.length and name in names}
        self._predict = net.predict  # the framework's own; converted once, it is lowered as ONNX
        step = NetStep(net.model, {name: (name,) for name in names}, rewrites)
        lowered = lower(
            Stack("s", {"nn": step}, {"y": "nn.score" if net.width == 1 else "nn.score0"}, inputs=lists),
            {name: columns[name] for name in names},
            tables=folder,
        )
        self.net: Any = lowered.steps[0].body
        self.findings = self.net.rewritten
        placement = place(lowered, 1024)
        self.names = names
        self.program = open_model(placement.models[0], folder)

    def predict(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        (floats,) = self._predict(inputs)
        return floats

    def answer(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        given = {name: values if values.ndim == 2 else values[:, None] for name, values in inputs.items()}
        return next(iter(self.program.run({name: given[name] for name in self.names}).values()))

    def done(self) -> list[str]:
        return [finding.rewrite for finding in self.findings if finding.done]


def rows_of(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, WORDS, (count, STEPS))
    tokens[draw.random(tokens.shape) < 0.3] = 0
    tokens[:1] = 0
    return {
        "tokens": tokens,
        "other": draw.integers(0, WORDS, (count, STEPS)),
        "numeric": draw.normal(size=(count, WIDTH)).astype(np.float32),
        "user": draw.integers(0, WORDS, count),
        "item": draw.integers(0, WORDS, count),
    }


def agree(served: Served, *, counts: tuple[int, ...] = (0, 1, 2, 65), atol: float = 1e-6) -> None:
    for count in counts:
        rows = rows_of(count)
        answers = served.answer(rows)
        assert answers.shape == (count, 1)
        if count:
            wanted = served.predict({name: rows[name] for name in served.names})
            np.testing.assert_allclose(answers, wanted[:, :1], atol=atol, rtol=1e-6)


def exported(module: Any, *names: str) -> Any:
    batch = torch.export.Dim("rows", min=1, max=4096)
    examples = {name: torch.from_numpy(rows_of(3)[name]) for name in names}
    return torch.export.export(
        module.eval(), (), kwargs=examples, dynamic_shapes={name: {0: batch} for name in names}, strict=False
    )


def model(inputs: str, build: Callable[..., Any], **words: Any) -> Any:
    """A Keras model of the embedded tokens."""
    keras.utils.set_random_seed(3)
    tokens = keras.Input((STEPS,), dtype="int64", name=inputs)
    made = build(layers.Embedding(WORDS, WIDTH, **words)(tokens))
    return keras.Model(tokens, layers.Dense(1)(made))


RANDOM = {"bias_initializer": keras.initializers.RandomNormal(stddev=0.5)}


class Recurrent(nn.Module):
    def __init__(self, layer: Any, reads: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layer = layer(WIDTH, 9, batch_first=True, **options)
        self.top = nn.Linear(9 * (2 if options.get("bidirectional") else 1), 1)
        self.reads = reads

    def forward(self, tokens: Any) -> Any:
        states, last = self.layer(self.words(tokens))
        last = last[0] if isinstance(last, tuple) else last
        if self.reads == "states":
            return self.top(states.amax(1))
        return self.top(torch.cat(list(last), 1) if self.layer.bidirectional else last[-1])


class TestRecurrences:
    @pytest.mark.parametrize("reads", ["states", "last"])
    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
    def test_torch(self, layer: Any, bidirectional: bool, reads: str, tmp_path: Path) -> None:
        program = exported(Recurrent(layer, reads, bidirectional=bidirectional), "tokens")
        served = Served(program, tmp_path)
        directions = 2 if bidirectional else 1
        assert served.done() == [
            "open_recurrences",
            *["fold_embeddings"] * directions,
            *["recurrence_engine"] * directions,
        ]
        agree(served)
        # without the engine a Scan answers, and without the fold the engine is given projected inputs
        scanned = Served(program, tmp_path, ("open_recurrences", "fold_embeddings"))
        assert "recurrence_engine" not in scanned.done()
        agree(scanned, counts=(0, 1, 9))
        agree(Served(program, tmp_path, ("open_recurrences", "recurrence_engine")), counts=(0, 1, 9))

    def test_two_layers_and_no_bias(self, tmp_path: Path) -> None:
        served = Served(exported(Recurrent(nn.GRU, "last", num_layers=2), "tokens"), tmp_path)
        assert [finding.why for finding in served.findings if not finding.done] == [
            "its inputs are computed, not looked up"
        ]
        agree(served, counts=(1, 2, 65))  # ONNX Runtime's own GRU takes no rows at all badly; the runner never asks it
        agree(Served(exported(Recurrent(nn.LSTM, "last", bias=False), "tokens"), tmp_path))

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize(
        ("name", "build"),
        [
            ("gru", lambda x: layers.GRU(7, **RANDOM)(x)),
            ("gru, reset before", lambda x: layers.GRU(7, reset_after=False, **RANDOM)(x)),
            ("gru as wide as its inputs", lambda x: layers.GRU(WIDTH, **RANDOM)(x)),
            ("lstm", lambda x: layers.LSTM(7, **RANDOM)(x)),
            ("backwards", lambda x: layers.GRU(7, go_backwards=True, **RANDOM)(x)),
            ("both ways", lambda x: layers.Bidirectional(layers.GRU(7, **RANDOM))(x)),
            ("both ways, lstm", lambda x: layers.Bidirectional(layers.LSTM(7, **RANDOM), merge_mode="sum")(x)),
            (
                "two, with their states",
                lambda x: layers.GlobalMaxPooling1D()(
                    layers.GRU(5, return_sequences=True, **RANDOM)(layers.LSTM(7, return_sequences=True, **RANDOM)(x))
                ),
            ),
            (
                "both ways, with their states",
                lambda x: layers.GlobalMaxPooling1D()(
                    layers.Bidirectional(layers.GRU(7, return_sequences=True, **RANDOM))(x)
                ),
            ),
        ],
    )
    def test_keras(self, name: str, build: Any, masked: bool, tmp_path: Path) -> None:
        served = Served(model("tokens", build, mask_zero=masked), tmp_path)
        count = 2 if "both" in name or "two" in name else 1
        assert served.done().count("recurrence_engine") == count
        assert served.done().count("fold_embeddings") == (1 if "two" in name else count)
        assert not {node.op_type for node in served.net.model.graph.node} & {"Loop", "GRU", "LSTM", "Scan"}
        agree(served)
        if masked:
            made = model("tokens", build, mask_zero=masked)
            agree(Served(made, tmp_path, ("open_recurrences", "fold_embeddings")), counts=(0, 1, 9))

    def test_saved_model(self, tmp_path: Path) -> None:
        model("tokens", lambda x: layers.GRU(7, **RANDOM)(x), mask_zero=True).export(tmp_path / "net", verbose=False)
        served = Served(tmp_path / "net", tmp_path / "tables")
        assert served.done()[-3:] == ["open_recurrences", "fold_embeddings", "recurrence_engine"]
        agree(served)

    @pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
    def test_onnx_with_lengths_and_a_first_state(self, direction: str, tmp_path: Path) -> None:
        draw = np.random.default_rng(0)
        directions, width = 2 if direction == "bidirectional" else 1, 4
        constants = {
            "table": draw.normal(size=(WORDS, WIDTH)),
            "w": draw.normal(size=(directions, 3 * width, WIDTH)),
            "r": draw.normal(size=(directions, 3 * width, width)),
            "b": draw.normal(size=(directions, 6 * width)),
        }
        initial = [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()]
        initial += [
            onnx.numpy_helper.from_array(np.array(v, np.int64), k)
            for k, v in (("zero", 0), ("axes", [1]), ("flat", [0, -1]), ("d", [directions]), ("width", [width]))
        ]
        node = onnx.helper.make_node
        nodes = [
            node("Transpose", ["tokens"], ["turned"], perm=[1, 0]),
            node("Gather", ["table", "turned"], ["x"]),
            node("Cast", ["user"], ["raw"], to=onnx.TensorProto.INT32),
            node("Cast", ["zero"], ["zero32"], to=onnx.TensorProto.INT32),
            node("Mod", ["raw", "steps"], ["lengths"]),
            node("Unsqueeze", ["user", "both"], ["wide"]),
            node("Cast", ["wide"], ["floats"], to=onnx.TensorProto.FLOAT),
            node("Shape", ["user"], ["rows"]),
            node("Concat", ["d", "rows", "width"], ["shape"], axis=0),
            node("Expand", ["floats", "shape"], ["states"]),
            node("Mul", ["states", "small"], ["first"]),
            node(
                "GRU", ["x", "w", "r", "b", "lengths", "first"], ["every", "last"],
                hidden_size=width, direction=direction, linear_before_reset=0,
            ),
            node("ReduceSum", ["every", "sides"], ["summed"], keepdims=0),
            node("ReduceSum", ["last", "zeroth"], ["ended"], keepdims=0),
            node("Concat", ["summed", "ended"], ["y"], axis=1),
        ]  # fmt: skip
        initial += [
            onnx.numpy_helper.from_array(np.array(STEPS + 1, np.int32), "steps"),
            onnx.numpy_helper.from_array(np.array([0, 2], np.int64), "both"),
            onnx.numpy_helper.from_array(np.array([0, 1], np.int64), "sides"),
            onnx.numpy_helper.from_array(np.array([0], np.int64), "zeroth"),
            onnx.numpy_helper.from_array(np.array(0.01, np.float32), "small"),
        ]
        info = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            nodes,
            "g",
            [info("tokens", 7, ["rows", STEPS]), info("user", 7, ["rows"])],
            [info("y", 1, ["rows", 2 * width])],
            initial,
        )
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        served = Served(made, tmp_path)
        assert served.done()[:3] == ["drop_unread", "open_recurrences", "fold_embeddings"]
        left = [finding.why for finding in served.findings if not finding.done]
        assert left == ["it begins with states that are computed"] * directions
        agree(served, counts=(1, 2, 65), atol=3e-6)  # sums of states

    def test_what_is_no_layer_stays_a_loop(self, tmp_path: Path) -> None:
        class Odd(layers.Layer):
            def call(self, x: Any) -> Any:
                return keras.ops.while_loop(
                    lambda i, h: i < STEPS, lambda i, h: (i + 1, keras.ops.cos(h) + x[:, 0]), (0, x[:, 1])
                )[1]

        served = Served(model("tokens", lambda x: Odd()(x)), tmp_path)
        assert "open_recurrences" not in served.done()
        agree(served, counts=(1, 9))

    def test_layers_of_unequal_lengths_in_one_graph(self, tmp_path: Path) -> None:
        class Whole(nn.Module):
            """What both directions show of every step, weighted."""

            def __init__(self, length: int) -> None:
                super().__init__()
                self.table, self.gru = nn.Embedding(WORDS, 4), nn.GRU(4, 3, batch_first=True, bidirectional=True)
                self.length, self.score = length, nn.Linear(6, 1)

            def forward(self, tokens: Any) -> Any:
                states = self.gru(self.table(tokens[:, : self.length]))[0]
                return (torch.softmax(self.score(states), 1) * states).sum(1)[:, :1]

        torch.manual_seed(0)
        nets = {"long": Whole(9), "short": Whole(5)}
        given = {"tokens": np.random.default_rng(1).integers(0, WORDS, (70, 9))}
        stack = Stack(
            "s",
            {
                name: NetStep(net, {"tokens": ("tokens",)}, examples={"tokens": given["tokens"][:2]})
                for name, net in nets.items()
            },
            {name: f"{name}.score" for name in nets},
            inputs={"tokens": ListInput(9)},
        )
        lowered = lower(stack, {"tokens": Column("tokens", "int64", 9, 0)}, tables=tmp_path)
        placement = fuse(place(lowered, 1024))
        served = open_model(placement.models[0], tmp_path).run(given)
        for name, net in nets.items():
            with torch.inference_mode():
                np.testing.assert_allclose(served[name], net(torch.from_numpy(given["tokens"])).numpy(), atol=1e-6)


class Summed(nn.Module):
    def __init__(self, rows: int = WORDS, out: int = 4) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.words, self.dense, self.top = nn.Embedding(rows, WIDTH), nn.Linear(WIDTH, out), nn.Linear(out, 1)

    def forward(self, user: Any) -> Any:
        return self.top(torch.tanh(self.dense(self.words(user))))


class TestEmbeddings:
    def test_dense(self, tmp_path: Path) -> None:
        served = Served(exported(Summed(), "user"), tmp_path)
        (finding,) = served.findings
        assert (finding.macs, finding.bytes) == (WIDTH * 4, 4 * WORDS * (4 - WIDTH))
        assert str(finding).endswith("60 x 10 into 10 -> 4: 40 multiplications a row saved, tables 0.0 MB smaller")
        agree(served)

    def test_dense_of_every_step(self, tmp_path: Path) -> None:
        served = Served(model("tokens", lambda x: keras.ops.max(layers.Dense(3, **RANDOM)(x), axis=1)), tmp_path)
        (finding,) = [finding for finding in served.findings if finding.rewrite == "fold_embeddings"]
        assert finding.macs == STEPS * WIDTH * 3
        agree(served)

    def test_a_table_that_others_read_stays(self, tmp_path: Path) -> None:
        class Shared(Summed):
            def forward(self, user: Any, item: Any) -> Any:
                return self.top(self.dense(self.words(user))) + self.words(item).sum(1, keepdim=True)

        served = Served(exported(Shared(), "user", "item"), tmp_path)
        assert served.findings[0].bytes == 4 * WORDS * 4
        agree(served)

    def test_what_would_grow_too_large_is_left_and_that_is_said(self, tmp_path: Path) -> None:
        rows = MOST_GROWTH // (4 * 20) + WORDS
        served = Served(exported(Summed(rows, WIDTH + 20), "user"), tmp_path)
        (finding,) = served.findings
        assert not finding.done
        assert "the table would be 64 MB larger, and at most 64 are given" in str(finding)
        agree(served, counts=(1, 9))

    def test_large_tables_are_folded_in_files(self, tmp_path: Path) -> None:
        served = Served(exported(Summed(40_000, 16), "user"), tmp_path)
        assert served.findings[0].done
        assert served.net.model.ByteSize() < 20_000
        agree(served)


def found(served: Served, name: str) -> list[Any]:
    return [finding for finding in served.findings if finding.rewrite == name]


class TestBatchNorm:
    def test_keras(self, tmp_path: Path) -> None:
        keras.utils.set_random_seed(6)
        x = keras.Input((WIDTH,), name="numeric")
        y = layers.Dense(8, **RANDOM)(layers.BatchNormalization()(x))
        y = layers.Activation("relu")(layers.BatchNormalization()(y))
        made = keras.Model(x, layers.Dense(1)(layers.BatchNormalization()(layers.Dense(5)(y))))
        for layer in made.layers:
            if isinstance(layer, layers.BatchNormalization):
                draw = np.random.default_rng(1)
                layer.set_weights([draw.random(w.shape) + 0.3 for w in layer.get_weights()])
        served = Served(made, tmp_path)
        assert len(found(served, "fold_batch_norm")) >= 2
        agree(served)

    @pytest.mark.parametrize("before", [False, True])
    def test_torch(self, before: bool, tmp_path: Path) -> None:
        class Normed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(7)
                self.norm, self.dense = nn.BatchNorm1d(WIDTH if before else 6), nn.Linear(WIDTH, 6)
                self.top = nn.Linear(6, 1)
                for values in self.norm.state_dict().values():
                    if values.dtype == torch.float32:
                        values.copy_(torch.rand(values.shape) + 0.2)

            def forward(self, numeric: Any) -> Any:
                made = self.dense(self.norm(numeric)) if before else self.norm(self.dense(numeric).relu() * 2)
                return self.top(made)

        served = Served(exported(Normed(), "numeric"), tmp_path)
        assert found(served, "fold_batch_norm")
        agree(served)
        agree(Served(exported(Normed(), "numeric"), tmp_path, ("fold_batch_norm",)))


class TestPooling:
    @pytest.mark.parametrize("kind", ["mean", "sum"])
    @pytest.mark.parametrize("out", [4, WIDTH + 6])
    def test_the_dense_layer_of_a_pool_goes_into_the_table(self, kind: str, out: int, tmp_path: Path) -> None:
        class Pooled(Summed):
            def forward(self, tokens: Any) -> Any:
                return self.top(torch.tanh(self.dense(getattr(self.words(tokens), kind)(1))))

        served = Served(exported(Pooled(out=out), "tokens"), tmp_path)
        (finding,) = found(served, "commute_pooling")
        assert finding.done == (out <= WIDTH)
        if finding.done:
            assert (finding.macs, finding.bytes) == (WIDTH * 4 + STEPS * (WIDTH - 4), 4 * WORDS * (4 - WIDTH))
        else:
            assert "the table would be 0.0 MB larger" in finding.why
        agree(served, atol=2e-6)

    @pytest.mark.parametrize("kind", ["mean", "sum"])
    def test_the_pool_of_a_dense_layer_goes_first(self, kind: str, tmp_path: Path) -> None:
        class Pooled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(8)
                self.words, self.deep, self.top = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 7), nn.Linear(7, 1)

            def forward(self, tokens: Any) -> Any:
                return self.top(getattr(self.deep(torch.sin(self.words(tokens))), kind)(1))

        served = Served(exported(Pooled(), "tokens"), tmp_path)
        (finding,) = found(served, "commute_pooling")
        assert finding.macs == (STEPS - 1) * WIDTH * 7
        agree(served, atol=2e-6)


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.tables = nn.ModuleList(nn.Embedding(WORDS + rows, 4 if rows != 2 else 3) for rows in range(STEPS))
        self.top = nn.Linear(4 * STEPS - 1, 1)

    def forward(self, tokens: Any) -> Any:
        return self.top(torch.cat([table(tokens[:, place]) for place, table in enumerate(self.tables)], 1))


class TestLookUps:
    def test_small_tables_of_one_width_are_looked_up_together(self, tmp_path: Path) -> None:
        served = Served(exported(Tables(), "tokens"), tmp_path)
        assert [finding.where for finding in found(served, "fuse_look_ups")] == ["3 look-ups of width 4"]
        agree(served)
        rows = rows_of(3)
        # an id that its own table has not fails, though the next table's rows lie behind it
        for column, wrong in ((3, WORDS + 3), (4, -WORDS - 5)):
            rows["tokens"][1, column] = wrong
            with pytest.raises(ValueError, match="cannot be evaluated"):
                served.answer(rows)
            rows["tokens"][1, column] = 0
        served.answer(rows)

    def test_ids_of_keras_are_plain(self, tmp_path: Path) -> None:
        made = model("tokens", lambda x: keras.ops.max(x, axis=1))
        served = Served(made, tmp_path)
        assert [finding.rewrite for finding in served.findings] == ["plain_ids"]
        assert [node.op_type for node in served.net.model.graph.node] == ["Gather", "ReduceMax", "MatMul"]
        agree(served)
        below = {"tokens": np.full((2, STEPS), -3)}
        np.testing.assert_allclose(served.answer(below), served.predict(below), atol=1e-6)

    def test_other_arithmetic_of_ids_stays(self, tmp_path: Path) -> None:
        keras.utils.set_random_seed(10)
        tokens = keras.Input((STEPS,), dtype="int64", name="tokens")
        shifted = layers.Embedding(WORDS, WIDTH)(keras.ops.maximum(tokens * 2 - WORDS, 0))
        served = Served(keras.Model(tokens, layers.Dense(1)(keras.ops.max(shifted, axis=1))), tmp_path)
        agree(served)


def test_what_nobody_reads_is_dropped(tmp_path: Path) -> None:
    made = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[N, 10] numeric) => (float[N, 1] y)
        <float[10, 1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, float[2] unread = {1, 2}> {
            y = MatMul(numeric, w)
            z = Relu(y)
            u = Add(unread, unread)
        }"""
    )
    served = Served(made, tmp_path)
    assert [str(finding) for finding in served.findings] == [
        "drop_unread: 2 nodes that no output needs: tables 0.0 MB smaller"
    ]
    assert len(served.net.model.graph.node) == 1
    agree(served)


class TestSwitches:
    def test_each_can_be_left_out(self, tmp_path: Path) -> None:
        program = read_net("nn", exported(Recurrent(nn.GRU, "last"), "tokens")).model
        assert Served(program, tmp_path, ()).findings == ()
        agree(Served(program, tmp_path, ()), counts=(1, 9))
        for name in ALL:
            served = Served(program, tmp_path, (name,))
            assert {finding.rewrite for finding in served.findings} <= {name}
            agree(served, counts=(1, 9))

    def test_an_unknown_one(self, tmp_path: Path) -> None:
        with pytest.raises(
            StackError, match="step nn names the rewrite fold, which there is not; choose from drop_unread"
        ):
            Served(exported(Summed(), "user"), tmp_path, ("fold",))

    def test_the_same_bytes_every_time(self, tmp_path: Path) -> None:
        program = exported(Recurrent(nn.GRU, "states", bidirectional=True), "tokens")
        models = [Served(program, tmp_path / name).net.model.SerializeToString() for name in "ab"]
        assert models[0] == models[1]
