"""What the training libraries answer: NVTabular's transform, then each library's own predict or search, step by step.

Nothing here reads a lowered graph: this is the other side of every comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.candidates import Candidates
from tristage.export.feature_source import Sourced
from tristage.export.features import Features
from tristage.export.forest import ForestSet
from tristage.export.lowered import Feed, LoweredStack, LoweredStep, Source, Workflow
from tristage.export.mean import Mean
from tristage.export.net import Net
from tristage.export.retrieval import Retrieval
from tristage.export.top_k import TopK
from tristage.serving.nvtabular import TransformFailed, at_serving_time, cut_lists, transform, values

__all__ = ["answer_step", "output_answers", "read_feeds", "reference_answers"]

_CHUNK = 512  # rows a net, or a candidates' stack, is asked about at once, which bounds the memory of its activations


def reference_answers(lowered: LoweredStack, frame: Any) -> dict[str, dict[str, NDArray[Any]]]:
    """Ask the training libraries.

    Args:
        lowered: the stack.
        frame: a pandas.DataFrame of raw rows with an index 0, 1, ...; a TargetEncoding's target columns may be absent.

    Returns:
        step -> column -> values, [rows] of a scalar column, [rows, length] of a list column.

    Raises:
        ArtifactError: a training library cannot answer for these rows.
    """
    answers: dict[str, dict[str, NDArray[Any]]] = {}
    for step in lowered.steps:
        answers[step.name] = answer_step(step, answers, frame)
    return answers


def output_answers(lowered: LoweredStack, answers: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """What a stack's outputs are by its steps' answers: [rows] of a scalar, [rows, length] of a list."""
    outputs = {}
    for name, its in lowered.outputs.items():
        columns = [np.asarray(answers[its.step][source.column.name]) for source in its.sources]
        outputs[name] = columns[0] if its.column.length is None else np.stack(columns, axis=1)
    return outputs


def answer_step(
    step: LoweredStep, answers: Mapping[str, Mapping[str, NDArray[Any]]], frame: Any
) -> dict[str, NDArray[Any]]:
    """Ask one step's training library.

    Args:
        step: the step.
        answers: the columns of the steps it reads, as `reference_answers` returns them.
        frame: the raw rows.
    """
    if isinstance(step.body, Workflow):
        return _transform(step, step.body.fitted, frame)
    feeds = read_feeds(step, answers, frame)
    match step.body:
        case ForestSet() as forests:
            result = _forests(forests, feeds["rows"], feeds.get("group"))
        case Net() | TopK() | Retrieval() | Candidates() | Features() | Sourced() as body:
            parts = [
                body.predict({name: values[start : start + _CHUNK] for name, values in feeds.items()})
                for start in range(0, len(frame), _CHUNK)
            ]
            joined = [np.concatenate(its) for its in zip(*parts, strict=True)]
            by_position = {
                position: values[:, at]
                for values, part in zip(joined, body.parts, strict=True)
                for at, position in enumerate(part.positions)
            }
            return {column.name: by_position[position] for position, column in enumerate(step.columns)}
        case Mean():
            result = step.body.predict(list(feeds.values()))
    return {column.name: result[:, number] for number, column in enumerate(step.columns)}


def read_feeds(
    step: LoweredStep, answers: Mapping[str, Mapping[str, NDArray[Any]]], frame: Any
) -> dict[str, NDArray[Any]]:
    """What a step reads, by its body's names; arguments are those of `answer_step`."""
    return {feed.name: _feed(feed, answers, frame) for feed in step.feeds}


def _transform(step: LoweredStep, fitted: Any, frame: Any) -> dict[str, NDArray[Any]]:
    raw = cut_lists(frame, [feed.sources[0].column for feed in step.feeds])
    try:
        made = transform(at_serving_time(fitted), raw)
    except TransformFailed as error:
        raise ArtifactError(f"step {step.name}: NVTabular's transform fails on the golden rows ({error})") from error
    return {column.name: values(made[column.name], column) for column in step.columns}


def _feed(feed: Feed, answers: Mapping[str, Mapping[str, NDArray[Any]]], frame: Any) -> NDArray[Any]:
    dtype = object if feed.dtype == "string" else feed.dtype
    columns = [_source(source, answers, frame).astype(dtype) for source in feed.sources]
    if feed.flat:
        return columns[0]
    return np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)


def _source(source: Source, answers: Mapping[str, Mapping[str, NDArray[Any]]], frame: Any) -> NDArray[Any]:
    if source.step is None:
        return values(frame[source.column.name], source.column)
    return answers[source.step][source.column.name]


def _forests(forests: ForestSet, rows: NDArray[Any], group: NDArray[Any] | None) -> NDArray[Any]:
    if group is None:
        return forests.answer(rows, None)
    result = np.full((len(rows), forests.width), np.nan, np.float32)
    chosen = np.array([str(value) for value in group[:, 0]])
    for value in forests.groups:
        members = chosen == value
        if members.any():
            result[members] = forests.answer(rows[members], value)
    return result
