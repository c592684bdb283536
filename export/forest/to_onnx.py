"""Treelite forests as ONNX TreeEnsembleRegressor nodes, with averaging and the choice of a group around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tristage.errors import ArtifactError
from tristage.export.forest.model import Forest, ForestSet
from tristage.export.onnx_graph import GraphBuilder

__all__ = ["add_forest", "add_forests", "check_model"]

# Treelite's comparison operators, "go left if value OP threshold"
_POSTPROCESSORS = ("identity", "identity_multiclass", "sigmoid", "multiclass_ova", "exponential", "softmax")
_MODES = {2: "BRANCH_LT", 3: "BRANCH_LTE", 4: "BRANCH_GT", 5: "BRANCH_GTE"}


def add_forests(graph: GraphBuilder, rows: str, forests: ForestSet, group: str | None) -> str:
    """Add a step's forests to a graph.

    Args:
        graph: the graph.
        rows: float32 [rows, features].
        forests: the step's forests.
        group: int64 [rows, 1], the position of a row's group in `forests.groups`, -1 for none; None without groups.

    Returns:
        float32 [rows, outputs], the bags' means; NaN for a row whose group has no forest.
    """
    if group is None:
        return _targets(graph, rows, forests, None)
    answers = graph.add(
        "Expand",
        graph.scalar(np.nan, "float32"),
        graph.add(
            "Concat",
            graph.add("Shape", rows, start=0, end=1),
            graph.constant(np.array([_width(forests)], np.int64)),
            axis=0,
        ),
    )
    for number, value in enumerate(forests.groups):
        belongs = graph.add("Equal", group, graph.scalar(number, "int64"))
        flat = graph.add("Squeeze", belongs, graph.constant(np.array([1], np.int64)))
        where = graph.add("Transpose", graph.add("NonZero", flat), perm=[1, 0])  # [members, 1]
        members = graph.add("GatherND", rows, where)
        answers = graph.add("ScatterND", answers, where, _targets(graph, members, forests, value))
    return answers


def _width(forests: ForestSet) -> int:
    return len(forests.targets) if forests.targets != (None,) else forests.all()[0].outputs


def _targets(graph: GraphBuilder, rows: str, forests: ForestSet, group: str | None) -> str:
    return graph.concat([_bag(graph, rows, forests.forests[group, target]) for target in forests.targets])


def _bag(graph: GraphBuilder, rows: str, bag: Sequence[Forest]) -> str:
    answers = [add_forest(graph, rows, forest.model) for forest in bag]
    return answers[0] if len(answers) == 1 else graph.add("Mean", *answers)


def check_model(model: Any, what: str) -> None:
    """Check that `add_forest` can add a Treelite model.

    Raises:
        ArtifactError: the model has what TreeEnsembleRegressor has not (categorical splits, vector leaves).
    """
    header = model.get_header_accessor()
    if int(header.get_field("num_target")[0]) != 1:
        raise ArtifactError(
            f"{what}: a forest with several targets in one model is not converted; train one per target"
        )
    if header.get_field("leaf_vector_shape").prod() != 1:
        raise ArtifactError(f"{what}: a forest with vector leaves is not converted; train one tree per class")
    postprocessor = _postprocessor(header)
    if postprocessor not in _POSTPROCESSORS or (
        postprocessor in ("sigmoid", "multiclass_ova") and float(header.get_field("sigmoid_alpha")[0]) != 1
    ):
        raise ArtifactError(f"{what}: a forest whose output goes through {postprocessor} is not converted")
    for number in range(model.num_tree):
        if model.get_tree_accessor(number).get_field("has_categorical_split")[0]:
            raise ArtifactError(
                f"{what}: a forest with categorical splits is not converted; one-hot or target-encode those columns"
            )


def add_forest(graph: GraphBuilder, rows: str, model: Any) -> str:
    """Add one Treelite model that `check_model` passes.

    Args:
        graph: the graph.
        rows: float32 [rows, features].
        model: the treelite.Model.

    Returns:
        its probabilities or values, float32 [rows, outputs].
    """
    header = model.get_header_accessor()
    outputs = int(header.get_field("num_class")[0])
    margins = graph.add(
        "TreeEnsembleRegressor",
        rows,
        domain="ai.onnx.ml",
        n_targets=outputs,
        post_transform="NONE",
        aggregate_function="AVERAGE" if header.get_field("average_tree_output")[0] else "SUM",
        base_values=np.asarray(header.get_field("base_scores"), np.float32).reshape(-1).tolist(),
        **_tree_attributes(model, np.asarray(header.get_field("class_id"))),
    )
    match _postprocessor(header):
        case "sigmoid" | "multiclass_ova":
            return graph.add("Sigmoid", margins)
        case "exponential":
            return graph.add("Exp", margins)
        case "softmax":
            return graph.add("Softmax", margins, axis=1)
    return margins


def _postprocessor(header: Any) -> str:
    name = header.get_field("postprocessor")
    return name if isinstance(name, str) else str(name[0])


def _tree_attributes(model: Any, classes: Any) -> dict[str, Any]:
    """The trees as the flat lists that TreeEnsembleRegressor wants: one entry a node, one weight a leaf."""
    nodes: dict[str, list[Any]] = {
        name: [] for name in ("tree", "node", "feature", "value", "mode", "left", "right", "missing")
    }
    leaves: dict[str, list[Any]] = {name: [] for name in ("tree", "node", "target", "weight")}
    for number in range(model.num_tree):
        tree = model.get_tree_accessor(number)
        left, right = tree.get_field("cleft"), tree.get_field("cright")
        inner = left >= 0
        count = len(left)
        nodes["tree"].append(np.full(count, number))
        nodes["node"].append(np.arange(count))
        nodes["feature"].append(np.where(inner, tree.get_field("split_index"), 0))
        nodes["value"].append(np.where(inner, tree.get_field("threshold"), 0).astype(np.float32))
        nodes["mode"].append(np.where(inner, tree.get_field("cmp"), 0))
        nodes["left"].append(np.where(inner, left, 0))
        nodes["right"].append(np.where(inner, right, 0))
        nodes["missing"].append(np.where(inner, tree.get_field("default_left"), 0))
        at = np.flatnonzero(~inner)
        leaves["tree"].append(np.full(len(at), number))
        leaves["node"].append(at)
        leaves["target"].append(np.full(len(at), max(int(classes[number]), 0)))
        leaves["weight"].append(tree.get_field("leaf_value")[at].astype(np.float32))
    flat = {name: np.concatenate(parts).tolist() for name, parts in nodes.items()}
    ends = {name: np.concatenate(parts).tolist() for name, parts in leaves.items()}
    return {
        "nodes_treeids": flat["tree"],
        "nodes_nodeids": flat["node"],
        "nodes_featureids": flat["feature"],
        "nodes_values": flat["value"],
        "nodes_modes": [_MODES[mode] if mode else "LEAF" for mode in flat["mode"]],
        "nodes_truenodeids": flat["left"],
        "nodes_falsenodeids": flat["right"],
        "nodes_missing_value_tracks_true": flat["missing"],
        "target_treeids": ends["tree"],
        "target_nodeids": ends["node"],
        "target_ids": ends["target"],
        "target_weights": ends["weight"],
    }
