"""A step's forests in a graph for Triton's native backends: one checkpoint for FIL, and ONNX nodes around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tristage.errors import ArtifactError
from tristage.export.forest.checkpoint import Merged, write_checkpoint
from tristage.export.forest.model import Forest, ForestSet, postprocessor_of
from tristage.export.forest.postprocess import POSTPROCESSORS
from tristage.export.onnx_graph import GraphBuilder

__all__ = ["add_checkpoint"]

# these look at all classes of a forest together; the others take each column by itself
_ACROSS = ("softmax", "argmax")


def add_checkpoint(
    graph: GraphBuilder, rows: str, forests: ForestSet, group: str | None, folder: Path, name: str
) -> str:
    """Add a step's forests to a graph, to be answered by FIL.

    Args:
        graph: the graph.
        rows: float32 [rows, features].
        forests: the step's forests.
        group: int64 [rows, 1], the position of a row's group in `forests.groups`, -1 for none; None without groups.
        folder: where the checkpoint is written.
        name: the step's name.

    Returns:
        float32 [rows, `forests.width`], the bags' means; NaN for a row whose group has no forest.

    Raises:
        ArtifactError: FIL would answer otherwise than the training library.
    """
    file, merged = write_checkpoint(forests, folder)
    rows = _categories(graph, rows, forests)
    if group is not None:
        rows = graph.concat([rows, graph.cast(group, "int64", "float32")])
    raw = graph.checkpoint(file, rows, merged.features, merged.width, name)
    answers = _answers(graph, raw, forests, merged)
    if group is not None:
        nobody = graph.add("Less", group, graph.scalar(0, "int64"))
        answers = graph.add("Where", nobody, graph.scalar(np.nan, "float32"), answers)
    return answers


def _answers(graph: GraphBuilder, raw: str, forests: ForestSet, merged: Merged) -> str:
    """Predictions, and margins where they are asked for, of the checkpoint's columns."""
    size = len(next(iter(forests.forests.values())))
    wide = merged.columns // size  # columns of each forest of a bag
    starts = range(merged.first, merged.first + merged.columns, wide)
    bags = [graph.columns(raw, range(start, start + wide), merged.width) for start in starts]
    if merged.probabilities:
        return _mean(graph, bags)
    members = [[forests.forests[group, target] for target in forests.targets] for group in forests.groups]
    ways = [[[of_target[number] for of_target in of_group] for of_group in members] for number in range(size)]
    if forests.average == "margins":
        predictions = _predictions(graph, _mean(graph, bags), ways[0], wide)
    else:
        predictions = _mean(graph, [_predictions(graph, bag, way, wide) for bag, way in zip(bags, ways, strict=True)])
    return graph.concat([predictions, _mean(graph, bags)] if forests.margins else [predictions])


def _predictions(graph: GraphBuilder, margins: str, members: Sequence[Sequence[Forest]], width: int) -> str:
    """Predictions of margins, the targets' side by side; members are of groups and targets."""
    ways = [{postprocessor_of(of_group[target]) for of_group in members} for target in range(len(members[0]))]
    if any(len(way) > 1 for way in ways):
        raise ArtifactError(
            "groups whose forests make predictions of margins in different ways do not fit into one checkpoint of FIL; "
            "train them with one objective, or export for pip-cpu"
        )
    each = [way.pop() for way in ways]
    if len(set(each)) == 1 and (len(each) == 1 or each[0][0] not in _ACROSS):
        return _one(graph, margins, each[0])
    classes = width // len(each)
    return graph.concat(
        [
            _one(graph, graph.columns(margins, range(at * classes, (at + 1) * classes), width), way)
            for at, way in enumerate(each)
        ]
    )


def _one(graph: GraphBuilder, margins: str, way: tuple[str, float, float]) -> str:
    name, alpha, ratio = way
    return POSTPROCESSORS[name](graph, margins, alpha, ratio)


def _mean(graph: GraphBuilder, tensors: Sequence[str]) -> str:
    return tensors[0] if len(tensors) == 1 else graph.add("Mean", *tensors)


def _categories(graph: GraphBuilder, rows: str, forests: ForestSet) -> str:
    """Rows whose categories FIL takes as the training library does: FIL drops a fraction, and takes none below 0."""
    rules: dict[int, set[str]] = {}
    numeric: set[int] = set()
    for forest in forests.all():
        for number in range(forest.model.num_tree):
            get = forest.model.get_tree_accessor(number).get_field
            kind, feature = get("node_type"), get("split_index")
            numeric.update(feature[kind == 1].tolist())
            for at in set(feature[kind == 2].tolist()):
                rules.setdefault(at, set()).add(forest.categories)
    first = forests.all()[0]
    rules = {feature: rule for feature, rule in rules.items() if rule != {"floor"}}
    for feature, rule in rules.items():
        if len(rule) > 1 or feature in numeric:
            raise ArtifactError(
                f"{first.feature(feature)} is a category to some of its forests and a number or another kind of "
                "category to others, which FIL cannot tell apart; export for pip-cpu"
            )
    if not rules:
        return rows
    zero = graph.scalar(0, "float32")
    pieces = []
    for feature in range(first.features):
        piece = graph.columns(rows, [feature], first.features)
        if rules.get(feature) == {"trunc"}:
            above = graph.add("Greater", piece, graph.scalar(-1, "float32"))
            piece = graph.add("Where", graph.add("And", above, graph.add("Less", piece, zero)), zero, piece)
        elif rules.get(feature) == {"exact"}:
            # NaN is no fraction: it stays
            fraction = graph.add("Greater", piece, graph.add("Floor", piece))
            piece = graph.add("Where", fraction, graph.scalar(-1, "float32"), piece)
        pieces.append(piece)
    return graph.concat(pieces)
