"""Treelite forests as ONNX TreeEnsembleRegressor nodes, with averaging and the choice of a group around them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx

from tristage.errors import ArtifactError
from tristage.export.forest.engine_nodes import EngineRefusal
from tristage.export.forest.model import Forest, ForestSet, postprocessor_of
from tristage.export.forest.postprocess import POSTPROCESSORS
from tristage.export.forest.trees import LARGEST_CATEGORY, join_attributes, tree_attributes
from tristage.export.onnx_graph import GraphBuilder

__all__ = ["add_forest", "add_forests", "check_forest", "forests_model"]


def add_forests(graph: GraphBuilder, rows: str, forests: ForestSet, group: str | None) -> str:
    """Add a step's forests to a graph.

    Args:
        graph: the graph.
        rows: float32 [rows, features].
        forests: the step's forests.
        group: int64 [rows, 1], the position of a row's group in `forests.groups`, -1 for none; None without groups.

    Returns:
        float32 [rows, `forests.width`], the bags' means; NaN for a row whose group has no forest.
    """
    if group is None:
        return _targets(graph, rows, forests, None)
    answers = graph.add(
        "Expand",
        graph.scalar(np.nan, "float32"),
        graph.add(
            "Concat",
            graph.add("Shape", rows, start=0, end=1),
            graph.constant(np.array([forests.width], np.int64)),
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


def forests_model(forests: ForestSet, *, one_node: bool = False) -> onnx.ModelProto:
    """A step's forests as a model of their own, of input `rows` and an output for each group, in their order.

    Args:
        forests: the step's forests.
        one_node: whether all trees of a group are in one TreeEnsembleRegressor, rather than each forest's in its own.

    Raises:
        EngineRefusal: `one_node`, and some forests are of float32, others of float64.
    """
    graph = GraphBuilder()
    rows = graph.input("rows", "float32", forests.all()[0].features)
    return graph.model(
        [
            (f"group{number}", _targets(graph, rows, forests, group, one_node=one_node), "float32", forests.width)
            for number, group in enumerate(forests.groups)
        ]
    )


def _targets(graph: GraphBuilder, rows: str, forests: ForestSet, group: str | None, *, one_node: bool = False) -> str:
    answers, margins = [], []
    bags = [forests.forests[group, target] for target in forests.targets]
    every = [forest for bag in bags for forest in bag]
    sums = iter(_together(graph, rows, every) if one_node else [add_forest(graph, rows, forest) for forest in every])
    for bag in bags:
        each = [next(sums) for _ in bag]
        mean = _mean(graph, each)
        margins.append(mean)
        if forests.average == "margins":
            answers.append(_postprocess(graph, mean, bag[0]))
        else:
            answers.append(
                _mean(graph, [_postprocess(graph, one, forest) for one, forest in zip(each, bag, strict=True)])
            )
    return graph.concat([*answers, *(margins if forests.margins else [])])


def _together(graph: GraphBuilder, rows: str, forests: Sequence[Forest]) -> list[str]:
    """The margins of each forest, from one node that has the trees of all."""
    if len({forest.model.input_type for forest in forests}) > 1:
        raise EngineRefusal("some of its forests compare in float32, others in float64")
    widths = [forest.margin_columns for forest in forests]
    sums = graph.add(
        "TreeEnsembleRegressor",
        graph.cast(rows, "float32", forests[0].model.input_type),
        domain="ai.onnx.ml",
        n_targets=sum(widths),
        post_transform="NONE",
        **join_attributes([tree_attributes(forest) for forest in forests], widths),
    )
    starts = np.cumsum([0, *widths]).tolist()
    return [graph.columns(sums, range(*span), sum(widths)) for span in itertools.pairwise(starts)]


def _mean(graph: GraphBuilder, tensors: Sequence[str]) -> str:
    return tensors[0] if len(tensors) == 1 else graph.add("Mean", *tensors)


def _postprocess(graph: GraphBuilder, margins: str, forest: Forest) -> str:
    name, alpha, ratio = postprocessor_of(forest)
    return POSTPROCESSORS[name](graph, margins, alpha, ratio)


def check_forest(forest: Forest, what: str) -> None:
    """Check that `add_forests` can add a forest.

    Raises:
        ArtifactError: the forest has what TreeEnsembleRegressor has not.
    """
    header = forest.model.get_header_accessor()
    if forest.model.num_tree == 0:
        raise ArtifactError(f"{what}: it has no trees; train it for a round at least")
    if len(header.get_field("num_class")) > 1 and np.max(header.get_field("num_class")) > 1:
        raise ArtifactError(f"{what}: a forest with several targets of several classes; train one forest per target")
    if forest.postprocessor not in POSTPROCESSORS:
        raise ArtifactError(f"{what}: a forest whose output goes through {forest.postprocessor} is not converted")
    for number in range(forest.model.num_tree):
        tree = forest.model.get_tree_accessor(number)
        if not tree.get_field("has_categorical_split")[0]:
            continue
        categories = tree.get_field("category_list")
        if len(categories) and categories.max() > LARGEST_CATEGORY:
            at = int(np.argmax(np.asarray(tree.get_field("category_list_end")) > int(categories.argmax())))
            name = forest.feature(int(tree.get_field("split_index")[at]))
            raise ArtifactError(
                f"{what}: {name} has the category {categories.max()}; features travel as float32, which tells whole "
                f"numbers apart up to {LARGEST_CATEGORY}: number its categories from 0"
            )


def add_forest(graph: GraphBuilder, rows: str, forest: Forest) -> str:
    """Add one forest that `check_forest` passes.

    Args:
        graph: the graph.
        rows: float32 [rows, features].
        forest: the forest.

    Returns:
        its margins, float32 [rows, `forest.margin_columns`].
    """
    return graph.add(
        "TreeEnsembleRegressor",
        graph.cast(rows, "float32", forest.model.input_type),
        domain="ai.onnx.ml",
        n_targets=forest.margin_columns,
        post_transform="NONE",
        **tree_attributes(forest),
    )
