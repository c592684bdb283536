"""The trained models that Merlin Systems' operators hold: in memory, or in the folder that Ensemble.export wrote."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tristage.errors import ArtifactError, StackError
from tristage.export.forest.lightgbm import check_whole
from tristage.export.merlin.folder import version_folder
from tristage.export.net.model import NetInput
from tristage.export.net.outputs import NetOutput
from tristage.export.net.torch_script import NamedTorchScript

__all__ = ["MerlinForest", "forest_of", "net_of", "probabilities_of", "workflow_of"]


def workflow_of(op: Any, repository: Path | None) -> tuple[Any, Any]:
    """The workflow of a TransformWorkflow, and what to read it from: itself, or the folder that Workflow.save wrote.

    Raises:
        StackError: it cannot be run any more.
    """
    from merlin.dag import Graph
    from nvtabular.ops import TargetEncoding

    workflow = _trained(op).workflow
    for node in Graph.get_nodes_by_op_type([workflow.output_node], TargetEncoding):
        if not node.op.target_columns:
            raise StackError(
                "a workflow's TargetEncoding has lost its target (label_columns, or Workflow.remove_inputs), so that "
                "NVTabular itself cannot run it; give the workflow as it was fitted: no request needs the target"
            )
    if repository is None:
        return workflow, workflow
    # the one in the graph's pickle looks for its categories where it was trained
    return workflow, version_folder(repository, op._nvt_model_name) / "workflow"


@dataclass(frozen=True)
class MerlinForest:
    """A forest as a PredictForest holds it.

    Attributes:
        model: the forest, without names of features, since Merlin hands columns over by position.
        trained: the names it was trained on, where it knows them.
        classes: how many it tells apart, as its library counts: 0, 1 or 2 where there are two.
    """

    model: Any
    trained: tuple[str, ...] | None
    classes: int


def forest_of(op: Any, repository: Path | None) -> MerlinForest:
    """The forest of a PredictForest.

    Raises:
        ArtifactError: it cannot be read, or its library has no converter.
    """
    if repository is None:
        forest = _model(op.fil_op.fil_model_class)
        library = type(forest).__module__.split(".")[0]
        match library:
            case "xgboost":
                return _xgboost(forest.copy())
            case "lightgbm":
                return _lightgbm(forest.model_to_string())
            case "sklearn":
                return _sklearn(forest)
        raise ArtifactError(f"a PredictForest holds a {type(forest).__name__} of {library}, which has no converter")
    folder = version_folder(repository, op._fil_model_name)
    if (folder / "model.txt").is_file():
        check_whole(folder / "model.txt", "a PredictForest")
        return _lightgbm((folder / "model.txt").read_text(encoding="utf-8"))
    if (folder / "checkpoint.tl").is_file():
        raise ArtifactError(
            f"{folder / 'checkpoint.tl'} is a scikit-learn forest as the Treelite of Merlin wrote it, which newer ones "
            "cannot read; give the graph with the model itself to Stack.from_merlin",
            path=folder,
        )
    import xgboost

    booster = xgboost.Booster()
    try:
        booster.load_model(folder / "xgboost.json")
    except xgboost.core.XGBoostError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(
            f"XGBoost {xgboost.__version__} cannot read {folder / 'xgboost.json'} ({reason})", path=folder
        ) from error
    return _xgboost(booster)


def _xgboost(booster: Any) -> MerlinForest:
    names = booster.feature_names
    booster.feature_names = None
    learner = json.loads(booster.save_config())["learner"]
    return MerlinForest(booster, names and tuple(names), int(learner["learner_model_param"]["num_class"]))


def _lightgbm(text: str) -> MerlinForest:
    import lightgbm

    header = dict(re.findall(r"^(num_class|feature_names)=(.*)$", text, re.MULTILINE))
    names = header["feature_names"].split(" ")
    automatic = " ".join(f"Column_{number}" for number in range(len(names)))
    text = text.replace(f"feature_names={header['feature_names']}\n", f"feature_names={automatic}\n", 1)
    return MerlinForest(lightgbm.Booster(model_str=text), tuple(names), int(header["num_class"]))


def _sklearn(forest: Any) -> MerlinForest:
    names = getattr(forest, "feature_names_in_", None)
    forest = copy.copy(forest)
    if names is not None:
        del forest.feature_names_in_
    return MerlinForest(
        forest, None if names is None else tuple(map(str, names)), int(np.max(getattr(forest, "n_classes_", 0)))
    )


def probabilities_of(op: Any, forest: MerlinForest) -> int:
    """How many values a PredictForest answers with: 1, or one for each class.

    Raises:
        StackError: Triton's FIL answers the label of a class.
    """
    parameters = op.fil_op.parameters
    if not parameters["output_class"] and forest.classes <= 2:
        return 1
    if not parameters["predict_proba"]:
        raise StackError(
            "a PredictForest answers labels of classes (output_class, or more than two classes); give it "
            "predict_proba=True and output_class=True, for a probability of each"
        )
    return max(forest.classes, 2)


def net_of(op: Any, repository: Path | None) -> tuple[Any, Mapping[str, NetOutput]]:
    """The net of a PredictTensorflow or PredictPyTorch, and its outputs by the names that Merlin has for them.

    Raises:
        ArtifactError: its inputs cannot be carried.
    """
    for column in op.input_schema:
        if column.is_ragged:
            raise ArtifactError(
                f"a {type(op).__name__.removesuffix('Triton')} reads {column.name} as values and offsets; have it "
                "read lists of one length: nvtabular.ops.ListSlice(..., pad=True) in the workflow"
            )
    if hasattr(op, "_torch_model_name"):
        inputs = tuple(NetInput(column.name, _dtype(column), _width(column)) for column in op.input_schema)
        if repository is None:
            script = _model(_trained(op))
        else:
            script = version_folder(repository, op._torch_model_name) / "model.pt"
        return NamedTorchScript(script, inputs), dict.fromkeys(op.output_schema.column_names, NetOutput("", 1))
    outputs = {column.name: NetOutput(column.name, _width(column)) for column in op.output_schema}
    ordered = dict(sorted(outputs.items()))  # as the converter lays them side by side
    if repository is not None:
        return version_folder(repository, op._tf_model_name) / "model.savedmodel", ordered
    trained = _trained(op)
    return Path(trained.path) if trained.path else _saved(_model(trained)), ordered


def _trained(op: Any) -> Any:
    """The operator that holds the model; Ensemble.export wraps it in one that asks Triton."""
    return op.op if type(op).__name__.endswith("Triton") else op


def _model(holder: Any) -> Any:
    try:
        return holder.model
    except AttributeError:
        raise ArtifactError(
            "the graph holds no models: Merlin pickles graphs without; give the folder that Ensemble.export wrote"
        ) from None


def _saved(model: Any) -> Any:
    """A Keras model as Merlin Systems serves it: its SavedModel."""
    import tensorflow

    if hasattr(model, "signatures"):
        return model
    with tempfile.TemporaryDirectory() as folder:
        tensorflow.saved_model.save(model, folder)
        return tensorflow.saved_model.load(folder)


def _width(column: Any) -> int | None:
    """Values a row of a column holds: None of a scalar, 0 of lists of any length."""
    dims: Any = column.shape.dims or ()
    if len(dims) < 2:
        return None
    return int(dims[1].max or 0)


def _dtype(column: Any) -> str:
    name = str(column.dtype.name)
    if name not in ("float32", "float64", "int64", "int32", "bool"):
        raise ArtifactError(
            f"a PredictPyTorch reads {column.name} as {name}; say float32, float64, int64, int32 or bool in its "
            "input_schema, as the model was trained"
        )
    return name
