"""CatBoost: a model of any of its classes, or a .cbm file.

It answers as the class for its loss does: probabilities for Logloss and MultiClass and their kin, what is expected for
Poisson and Tweedie, the raw value else. A categorical feature is carried where CatBoost one-hot encodes it
(one_hot_max_size) and its categories are whole numbers; one that it hashes into target statistics is not.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.forest.model import Forest, ForestConverter, answers_of

__all__ = ["CATBOOST"]

# loss -> postprocessor; all others answer the raw value
_POSTPROCESSORS = {
    "Logloss": "sigmoid",
    "CrossEntropy": "sigmoid",
    "Focal": "sigmoid",
    "MultiClass": "softmax",
    "MultiClassOneVsAll": "multiclass_ova",
    "MultiLogloss": "multiclass_ova",
    "MultiCrossEntropy": "multiclass_ova",
    "Poisson": "exponential",
    "Tweedie": "exponential",
}
_TYPES = {
    "sigmoid": "Probability",
    "softmax": "Probability",
    "multiclass_ova": "Probability",
    "exponential": "Exponent",
}
_NUMBERS = 1 << 16  # whole numbers whose hashes are known, to find out what a one-hot split looks for


@dataclass(frozen=True)
class _Test:
    """One split: a border of a numeric feature, or the categories that go right."""

    feature: int
    border: float = 0.0
    missing_left: bool = True
    categories: tuple[int, ...] = ()


def convert(artifact: Any, what: str) -> Forest:
    """Convert a CatBoost model.

    Raises:
        ArtifactError: the file is missing or not CatBoost's, or the model is not fitted, or has features that are not
            numbers or one-hot encoded whole numbers.
    """
    import catboost

    model = _read(artifact, what) if isinstance(artifact, Path) else _fitted(artifact, what)
    names = tuple(model.feature_names_)
    categorical = model.get_cat_feature_indices()
    document = _document(model, names, what)
    loss = _loss(document["model_info"])
    if loss == "RMSEWithUncertainty":
        raise ArtifactError(f"{what}: RMSEWithUncertainty answers a mean and a variance; train it with RMSE")
    outputs = len(document["scale_and_bias"][1])
    postprocessor = _POSTPROCESSORS.get(loss, "identity" if outputs == 1 else "identity_multiclass")
    library = f"CatBoost {catboost.__version__}"

    def ask(rows: NDArray[Any], kind: str) -> Any:
        # CatBoost's own predict: those of its descendants take no prediction_type, or answer classes
        answers = catboost.CatBoost.predict(model, _table(rows, categorical), prediction_type=kind)
        return answers[:, 1] if kind == "Probability" and outputs == 1 else answers

    return Forest(
        model=_treelite(document, names, postprocessor, what),
        postprocessor=postprocessor,
        features=len(names),
        names=None if names == tuple(map(str, range(len(names)))) else names,
        outputs=outputs,
        predict=answers_of(what, library, lambda rows: ask(rows, _TYPES.get(postprocessor, "RawFormulaVal")), outputs),
        margins=answers_of(what, library, lambda rows: ask(rows, "RawFormulaVal"), outputs),
        categories="exact",
    )


def _read(path: Path, what: str) -> Any:
    import catboost

    try:
        return catboost.CatBoost().load_model(str(path))
    except catboost.CatBoostError as error:
        raise ArtifactError(
            f"{what}: CatBoost {catboost.__version__} cannot read {path} ({error})", path=path
        ) from error


def _fitted(artifact: Any, what: str) -> Any:
    import catboost

    if not isinstance(artifact, catboost.CatBoost):
        raise ArtifactError(f"{what}: a {type(artifact).__name__} is no CatBoost model; give a fitted CatBoost")
    if not artifact.is_fitted():
        raise ArtifactError(f"{what}: the {type(artifact).__name__} is not fitted; call fit first")
    return artifact


def _document(model: Any, names: Sequence[str], what: str) -> Any:
    """The model as CatBoost writes it in JSON."""
    for kind, features in (
        ("text", model.get_text_feature_indices()),
        ("an embedding", model.get_embedding_feature_indices()),
    ):
        if features:
            raise ArtifactError(f"{what}: feature {names[features[0]]} is {kind}; a forest reads numbers")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        model.save_model(str(path), format="json")
        return json.loads(path.read_bytes())


def _loss(info: Mapping[str, Any]) -> str:
    """The loss it was trained with, which says how it answers; empty where the model does not say."""
    loss = info.get("params", {}).get("loss_function") or info.get("loss_function") or {}
    return str((json.loads(loss) if isinstance(loss, str) else loss).get("type", ""))


def _table(rows: NDArray[Any], categorical: Sequence[int]) -> NDArray[Any]:
    """Rows as CatBoost wants them: categories as texts."""
    if not categorical:
        return rows
    table = rows.astype(object)
    for feature in categorical:
        table[:, feature] = [
            str(int(x)) if np.isfinite(x) and x == int(x) else str(x) for x in rows[:, feature].tolist()
        ]
    return table


def _treelite(document: Mapping[str, Any], names: Sequence[str], postprocessor: str, what: str) -> Any:
    from treelite.model_builder import Metadata, ModelBuilder, PostProcessorFunc, TreeAnnotation

    scale, biases = document["scale_and_bias"]
    outputs = len(biases)
    read = _Splits(document["features_info"], names, what)
    symmetric = "oblivious_trees" in document
    trees = document["oblivious_trees"] if symmetric else document["trees"]
    builder = ModelBuilder(
        threshold_type="float64",
        leaf_output_type="float64",
        metadata=Metadata(
            num_feature=len(names),
            task_type="kRegressor" if outputs == 1 else "kMultiClf",
            average_tree_output=False,
            num_target=1,
            num_class=[outputs],
            leaf_vector_shape=(1, outputs),
        ),
        tree_annotation=TreeAnnotation(
            num_tree=len(trees), target_id=[0] * len(trees), class_id=[0 if outputs == 1 else -1] * len(trees)
        ),
        postprocessor=PostProcessorFunc(name=postprocessor),
        base_scores=list(map(float, biases)),
    )
    for tree in trees:
        builder.start_tree()
        for node, test, children, values in (_symmetric if symmetric else _grown)(tree, read, outputs):
            builder.start_node(node)
            if test is None:
                leaf = [value * scale for value in values]
                builder.leaf(leaf[0] if outputs == 1 else leaf)
            elif test.categories:
                builder.categorical_test(
                    test.feature,
                    default_left=True,
                    category_list=list(test.categories),
                    category_list_right_child=True,
                    left_child_key=children[0],
                    right_child_key=children[1],
                )
            else:
                builder.numerical_test(
                    test.feature,
                    test.border,
                    default_left=test.missing_left,
                    opname="<=",
                    left_child_key=children[0],
                    right_child_key=children[1],
                )
            builder.end_node()
        builder.end_tree()
    return builder.commit()


# number, test (None for a leaf), children, a leaf's values
_Node = tuple[int, _Test | None, tuple[int, int], Sequence[float]]


def _symmetric(tree: Mapping[str, Any], read: _Splits, outputs: int) -> Iterator[_Node]:
    """A symmetric tree: one test a level; split 0 is the lowest bit of a leaf's number, so the last level's test."""
    tests = [read.test(split) for split in reversed(tree.get("splits") or ())]
    for level, test in enumerate(tests):
        for node in range(2**level - 1, 2 ** (level + 1) - 1):
            yield node, test, (2 * node + 1, 2 * node + 2), ()
    for leaf in range(2 ** len(tests)):
        yield 2 ** len(tests) - 1 + leaf, None, (0, 0), tree["leaf_values"][leaf * outputs : (leaf + 1) * outputs]


def _grown(tree: Mapping[str, Any], read: _Splits, outputs: int) -> Iterator[_Node]:
    """A tree of any shape, as grow_policy Depthwise and Lossguide make it."""
    waiting, number = [(0, tree)], 0
    while waiting:
        node, branch = waiting.pop()
        if "split" not in branch:
            value = branch["value"]
            yield node, None, (0, 0), value if isinstance(value, list) else [value]
            continue
        yield node, read.test(branch["split"]), (number + 1, number + 2), ()
        waiting += [(number + 1, branch["left"]), (number + 2, branch["right"])]
        number += 2


class _Splits:
    """Reads splits, whose features are counted kind by kind."""

    def __init__(self, info: Mapping[str, Any], names: Sequence[str], what: str) -> None:
        self._names, self._what = names, what
        self._floats = {entry["feature_index"]: entry for entry in info.get("float_features", ())}
        self._categories = {
            entry["feature_index"]: entry["flat_feature_index"] for entry in info.get("categorical_features", ())
        }
        self._statistics = [
            self._categories[element["cat_feature_index"]]
            for entry in info.get("ctrs", ())
            for element in entry["elements"]
            if "cat_feature_index" in element
        ]

    def test(self, split: Mapping[str, Any]) -> _Test:
        """One split of a tree."""
        if split["split_type"] == "FloatFeature":
            feature = self._floats[split["float_feature_index"]]
            return _Test(
                feature["flat_feature_index"], float(split["border"]), feature["nan_value_treatment"] != "AsTrue"
            )
        if split["split_type"] != "OneHotFeature":
            names = ", ".join(self._names[feature] for feature in sorted(set(self._statistics)))
            raise ArtifactError(
                f"{self._what}: CatBoost hashes the categories of {names} into target statistics, which trees of "
                "numbers cannot say; encode them before (nvtabular's TargetEncoding does), or train with a larger "
                "one_hot_max_size"
            )
        feature = self._categories[split["cat_feature_index"]]
        categories = _hashes().get(split["value"] % 2**32)
        if categories is None:
            raise ArtifactError(
                f"{self._what}: feature {self._names[feature]} has a category that is no whole number below "
                f"{_NUMBERS}; number its categories (nvtabular's Categorify does) and train on the numbers"
            )
        return _Test(feature, categories=categories)


@functools.cache
def _hashes() -> dict[int, tuple[int, ...]]:
    """CatBoost's hash of a category -> the whole numbers that have it, as CatBoost itself writes them down."""
    import catboost

    options = {"iterations": 1, "one_hot_max_size": 2, "allow_writing_files": False, "logging_level": "Silent"}
    numbers = [[str(number)] for number in range(_NUMBERS)]
    probe = catboost.CatBoost(options).fit(catboost.Pool(numbers[:2], [0, 1], cat_features=[0]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        probe.save_model(str(path), format="json", pool=catboost.Pool(numbers, cat_features=[0]))
        document = json.loads(path.read_bytes())
    found: dict[int, tuple[int, ...]] = {}
    for entry in document["features_info"]["cat_features_hash"]:
        hashed = entry["hash"] % 2**32
        found[hashed] = (*found.get(hashed, ()), int(entry["value"]))
    return found


CATBOOST = ForestConverter(name="CatBoost", suffixes=(".cbm",), modules=("catboost",), convert=convert)
