"""What FIL of Triton 24.10 takes for granted of a checkpoint: each a rule of the exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import treelite
import xgboost
from forest_parity import close_in_float32, natively, rows_of, served
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from treelite.model_builder import Metadata, ModelBuilder, PostProcessorFunc, TreeAnnotation

from tristage.errors import ArtifactError
from tristage.export.choices import choose
from tristage.export.config import model_config
from tristage.export.forest import Forest, ForestSet, read_forests
from tristage.export.forest.checkpoint import merge, write_checkpoint
from tristage.export.place import Checkpoint, PlacedModel, Tensor
from tristage.targets import TARGETS
from tristage.triton_settings import TritonSettings

ROWS = rows_of(0, 400, 4)
LABELS = (np.nan_to_num(ROWS[:, 0]) + np.nan_to_num(ROWS[:, 1]) ** 2 > 0.5).astype(int)
WHOLE = np.nan_to_num(ROWS)
THREE = np.digitize(WHOLE[:, 0], [-0.5, 0.5])


def train(seed: int = 0, rounds: int = 6, label: Any = LABELS, **options: Any) -> xgboost.Booster:
    options = {"objective": "binary:logistic", "max_depth": 4, "seed": seed, "subsample": 0.6, "nthread": 1, **options}
    return xgboost.train(options, xgboost.DMatrix(ROWS, label), rounds)


def forests_of(artifact: Any, targets: tuple[str, ...] = (), grouped: bool = False, **options: Any) -> ForestSet:
    return read_forests("f", artifact, targets, grouped, **options)


def header(model: Any, name: str) -> Any:
    return model.get_header_accessor().get_field(name)


MANY = {
    "bag and targets": lambda: forests_of({t: [train(n) for n in range(3)] for t in "ab"}, ("a", "b")),
    "two columns": lambda: forests_of({"a": train(1), "b": train(2, rounds=9)}, ("a", "b")),
    "one column": lambda: forests_of(train()),
    "classes": lambda: forests_of(train(label=THREE, objective="multi:softprob", num_class=3)),
    "unequal base scores": lambda: forests_of(train(label=THREE % 2, objective="multi:softprob", num_class=2)),
    "several targets": lambda: forests_of(train(label=np.stack([LABELS, 1 - LABELS], 1))),
    "vector leaves": lambda: forests_of(RandomForestRegressor(5, random_state=0).fit(WHOLE, WHOLE[:, :2])),
    "averages": lambda: forests_of(RandomForestClassifier(5, random_state=0).fit(WHOLE, THREE)),
    "float64, <=": lambda: forests_of(GradientBoostingClassifier(n_estimators=5).fit(WHOLE, THREE)),
    "groups": lambda: forests_of({"7": train(1), "8": train(2)}, grouped=True),
}


@pytest.mark.parametrize("name", MANY)
def test_what_fil_takes_for_granted(name: str) -> None:
    merged = merge(MANY[name]())
    model = merged.model
    assert model.input_type == model.output_type == "float32"
    assert header(model, "num_target").tolist() == [1]
    width = int(header(model, "num_class")[0])
    assert width != 2  # the GPU refuses two
    assert merged.width == (2 if width == 1 else width)
    assert header(model, "class_id").tolist() == [tree % width for tree in range(model.num_tree)]
    assert model.num_tree % width == 0
    assert header(model, "leaf_vector_shape").tolist() == [1, 1]
    assert not header(model, "base_scores").any()
    assert not header(model, "average_tree_output")[0]
    assert header(model, "sigmoid_alpha").tolist() == [1]
    assert header(model, "task_type").tolist() == [1]  # a regressor: of what is multi-class FIL makes a softmax
    assert header(model, "postprocessor") in ("sigmoid", "identity", "multiclass_ova", "identity_multiclass")
    for number in range(model.num_tree):
        tree = model.get_tree_accessor(number)
        inner = tree.get_field("cleft") >= 0
        assert set(tree.get_field("cmp")[inner].tolist()) <= {2}  # x < threshold, and nothing else
        assert not np.isnan(tree.get_field("threshold")).any()


def test_a_bag_and_its_targets_are_one_model() -> None:
    forests = MANY["bag and targets"]()
    merged = merge(forests)
    assert (merged.columns, merged.width, merged.probabilities) == (6, 6, True)
    answers = treelite.gtil.predict(merged.model, ROWS, nthread=1).reshape(len(ROWS), 6)
    separate = [forests.forests[None, target][bag].predict(ROWS) for bag in range(3) for target in "ab"]
    np.testing.assert_allclose(answers, np.concatenate(separate, axis=1), atol=1e-6)
    close_in_float32(natively(forests, ROWS), served(forests, ROWS))


def test_a_row_meets_its_own_groups_trees() -> None:
    forests = forests_of(
        {str(group): {"a": train(group), "b": train(group + 9)} for group in range(3)}, ("a", "b"), True
    )
    groups = np.random.default_rng(0).integers(-1, 3, len(ROWS))
    answers = natively(forests, ROWS, groups)
    assert np.isnan(answers[groups == -1]).all()
    for group in range(3):
        for column, target in enumerate("ab"):
            here = groups == group
            expected = forests.forests[str(group), target][0].predict(ROWS[here])[:, 0]
            np.testing.assert_allclose(answers[here, column], expected, atol=1e-6)
    # every tree of a group begins with two comparisons of the row's group
    tree = merge(forests).model.get_tree_accessor(0)
    assert tree.get_field("split_index")[[0, 2]].tolist() == [4, 4]
    assert tree.get_field("threshold")[[0, 2]].tolist() == [0.5, -0.5]


@pytest.mark.parametrize("operator", ["<", "<=", ">", ">="])
@pytest.mark.parametrize("nan_left", [False, True])
@pytest.mark.parametrize("threshold", [1e308, -1e308, 0.1, -0.0, 1e-46, 16777217.0, np.inf, -np.inf])
def test_comparisons_in_float64(operator: str, nan_left: bool, threshold: float) -> None:
    # float32 rows meet a float64 threshold as they did in training; no float32 bound lets infinity pass x < bound
    builder = ModelBuilder(
        threshold_type="float64",
        leaf_output_type="float64",
        metadata=Metadata(1, "kRegressor", False, 1, [1], (1, 1)),
        tree_annotation=TreeAnnotation(1, [0], [0]),
        postprocessor=PostProcessorFunc("identity"),
        base_scores=[0.25],
    )
    builder.start_tree()
    builder.start_node(0)
    builder.numerical_test(0, threshold, nan_left, operator, 1, 2)
    builder.end_node()
    for node in (1, 2):
        builder.start_node(node)
        builder.leaf(float(node))
        builder.end_node()
    builder.end_tree()
    model = builder.commit()
    near = np.float32(np.clip(threshold, -3e38, 3e38))
    around = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    rows = np.array([*around, np.inf, -np.inf, np.nan, 3.4e38, 0.0, -0.0], np.float32)[:, None]
    wide = rows.astype(np.float64)
    left = {"<": wide < threshold, "<=": wide <= threshold, ">": wide > threshold, ">=": wide >= threshold}[operator]
    expected = np.where(np.where(np.isnan(wide), nan_left, left), 1.25, 2.25)
    forest = Forest(model, "identity", 1, None, 1, lambda given: given, None)
    merged = merge(ForestSet({(None, None): (forest,)}, (None,), (None,)))
    answers = treelite.gtil.predict(merged.model, rows, nthread=1).reshape(-1, 1)
    np.testing.assert_array_equal(answers, expected)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    unequal = forests_of({"1": [train(1)], "2": [train(2), train(3)]}, grouped=True)
    with pytest.raises(ArtifactError, match="bags of 1 and 2 forests .* export for pip-cpu"):
        natively(unequal, ROWS, np.zeros(len(ROWS)))
    ways = forests_of({"1": train(1), "2": train(2, objective="count:poisson")}, grouped=True)
    with pytest.raises(ArtifactError, match="different ways"):
        natively(ways, ROWS, np.zeros(len(ROWS)))
    kinds = ROWS.copy()
    kinds[:, 3] = np.arange(len(ROWS)) % 9
    category = lightgbm.Dataset(kinds, kinds[:, 3] % 2, categorical_feature=[3])
    light = lightgbm.train({"objective": "binary", "verbose": -1, "min_data_per_group": 1}, category, 3)
    number = lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(kinds, kinds[:, 3] > 3), 3)
    with pytest.raises(ArtifactError, match="feature 3 is a category to some of its forests"):
        natively(forests_of([light, number]), kinds)


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    names = [write_checkpoint(MANY["groups"](), tmp_path / folder)[0] for folder in ("a", "b")]
    assert names[0] == names[1]
    assert (tmp_path / "a" / names[0]).read_bytes() == (tmp_path / "b" / names[0]).read_bytes()


@pytest.mark.parametrize(("target", "kind"), [("ngc-cpu", "KIND_CPU"), ("ngc-gpu", "KIND_GPU")])
@pytest.mark.parametrize(("width", "classes"), [(2, "false"), (3, "true"), (12, "true")])
def test_configuration(target: str, kind: str, width: int, classes: str) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    tensors = ((Tensor("rows", "float32", 7),), (Tensor("answers", "float32", width),))
    model = PlacedModel("s_f", ("f",), Checkpoint("forest.tl", 7, width), *tensors, {}, on_gpu=frozenset({"f"}))
    config = text_format.Parse(
        model_config(model, 64, choose(model, 64, TARGETS[target], TritonSettings(), 3)), pb.ModelConfig()
    )
    assert config.backend == "fil"
    assert [(i.name, list(i.dims)) for i in config.input] == [("input__0", [7])]
    assert [(o.name, list(o.dims)) for o in config.output] == [("output__0", [width])]
    assert [(g.count, pb.ModelInstanceGroup.Kind.Name(g.kind)) for g in config.instance_group] == [(3, kind)]
    said = {name: parameter.string_value for name, parameter in config.parameters.items()}
    assert said == {
        "model_type": "treelite_checkpoint",
        "output_class": classes,
        "predict_proba": "true",
        "threshold": "0.5",
        "use_experimental_optimizations": "true",
        "cpu_nthread": "1",
    }
