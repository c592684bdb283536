"""Runs a placement in this process, without Triton, and compares every tensor with the training libraries' answers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import DTYPES
from tristage.errors import ArtifactError, ParityError
from tristage.export.candidates import Candidates
from tristage.export.gtil import OpenCheckpoint
from tristage.export.lowered import LoweredStack, LoweredStep
from tristage.export.nested import frame_of
from tristage.export.net.backends import OpenNet
from tristage.export.net.native import NativeNet
from tristage.export.place import Checkpoint, PlacedModel, Placement
from tristage.export.reference import answer_step, output_answers, read_feeds, reference_answers
from tristage.export.repository import save_model
from tristage.export.retrieval import Retrieval
from tristage.export.top_k import TopK
from tristage.serving.graph import GraphError, Runnable, Tensor
from tristage.serving.interpreted import Interpreter
from tristage.serving.runner import open_folder
from tristage.serving.workflow_file import WorkflowFile

__all__ = ["MAX_EDGE_SHARE", "Parity", "check_answers", "check_parity", "open_model", "run_placement"]

MAX_EDGE_SHARE = 0.005  # of the golden rows, or of candidates; more than this on an edge is no accident
_MAX_LEFT_OUT = 0.2  # of the golden rows, where they are left out for one of their many candidates


@dataclass(frozen=True)
class Parity:
    """How far the exported graphs are from the training libraries.

    Attributes:
        differences: step -> largest difference on the rows that are not on an edge, relative to max(1, |answer|).
        edge: [rows] booleans: rows on a split's edge, where an earlier step's rounding (below the tolerance) sends a
            tree the other way, or lets two neighbours change places so that what is answered differs; the training
            library answers as served when it is given the served inputs.
    """

    differences: Mapping[str, float]
    edge: NDArray[np.bool_]


def run_placement(placement: Placement, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every tensor of a placement for encoded rows, by name; in chunks of the signature's max_batch.

    Args:
        placement: the stack as Triton models.
        inputs: the raw columns' tensors, as tristage.client.codec.encode makes them.
    """
    tensors: dict[str, NDArray[Any]] = dict(inputs)
    rows, most = len(next(iter(inputs.values()))), placement.signature.max_batch
    for model in placement.models:
        graph = open_model(model, placement.tables)
        names = [tensor.name for tensor in model.outputs]
        try:
            parts = [
                graph.run({t.name: tensors[t.name][start : start + most] for t in model.inputs})
                for start in range(0, max(rows, 1), most)
            ]
        except GraphError as error:
            raise ArtifactError(f"step {', '.join(model.steps)}: {error}") from error
        tensors.update({name: np.concatenate([part[name] for part in parts]) for name in names})
    return tensors


def open_model(model: PlacedModel, tables: Path | None = None) -> Runnable:
    """A placed model, opened as the server opens it.

    Args:
        model: the model.
        tables: the folder of the large tables it refers to.

    Raises:
        ArtifactError: ONNX Runtime lacks an operator of it for one of its dtypes, or NVTabular cannot load its
            workflow.
    """
    if isinstance(model.graph, WorkflowFile):
        try:
            return Interpreter.open(model.graph)
        except GraphError as error:
            raise ArtifactError(f"step {', '.join(model.steps)}: {error}") from error
    if isinstance(model.graph, Checkpoint):
        assert tables is not None
        return OpenCheckpoint.of(model, tables)
    if isinstance(model.graph, NativeNet):
        assert tables is not None
        given, made = (
            tuple(Tensor(its.name, f"TYPE_{DTYPES[its.dtype][1]}", np.dtype(its.dtype), its.width) for its in tensors)
            for tensors in (model.inputs, model.outputs)
        )
        return OpenNet.open(model.graph, given, made, tables / model.graph.file, ", ".join(model.steps))
    with tempfile.TemporaryDirectory(dir=tables, prefix="model-") as folder:
        save_model(model.graph, Path(folder), tables, columns=not model.alone)
        try:
            return open_folder(Path(folder))
        except GraphError as error:
            raise ArtifactError(
                f"step {', '.join(model.steps)}: ONNX Runtime cannot run its graph ({error.__cause__ or error})"
            ) from error


def check_parity(
    lowered: LoweredStack,
    placement: Placement,
    inputs: Mapping[str, NDArray[Any]],
    answers: Mapping[str, Mapping[str, NDArray[Any]]],
    frame: Any,
    tolerance: float,
    cut: Placement | None = None,
    most: float = MAX_EDGE_SHARE,
) -> Parity:
    """Compare every step's tensors with what the training libraries answered.

    Args:
        lowered: the stack.
        placement: the same as Triton models, one a step.
        inputs: the golden rows' tensors.
        answers: what the training libraries answered, by step and column.
        frame: the golden rows.
        tolerance: largest difference allowed.
        cut: the models that answer, where they are not the placement's own but parts of them.
        most: the share of rows that may lie on a split's edge.

    Raises:
        ParityError: a step differs, not on an edge alone; the message names the step, the column and the row.
    """
    tensors = run_placement(cut or placement, inputs)
    steps = {step.name: step for step in lowered.steps}
    served = {step: dict(columns) for step, columns in answers.items()}
    largest: dict[str, NDArray[np.float64]] = {}
    edge, inside, moved = np.zeros((3, len(frame)), bool)
    allowed = most  # of many candidates, one lies on an edge more often
    for model in placement.models:
        (step,) = model.steps
        difference = _differences(model, tensors, answers)
        off = difference > tolerance
        if off.any():
            body = steps[step].body
            _check_edge(steps[step], model, tensors, served, frame, off, tolerance)
            edge |= off
            moved |= off & isinstance(body, (TopK, Retrieval, Candidates))
            if isinstance(body, Candidates):
                inside |= off
                allowed = max(allowed, min(_MAX_LEFT_OUT, most * body.count))
        largest[step] = difference
        for name, columns in model.columns.items():
            served[step].update(_served_columns(tensors[name], columns, answers[step]))
    known = edge  # rows on which some step differs, and is right
    if moved.any():
        edge = edge & (~moved | _answered_otherwise(lowered, served, answers, tolerance))
    if (edge & ~inside).mean() > most or edge.mean() > allowed:
        raise ParityError(
            f"{edge.sum()} of {len(edge)} golden rows are answered otherwise than by the training libraries, because "
            "trees split, or neighbours change places, where an earlier step's rounding decides; give golden rows that "
            "training never saw, train the later forests on rounded inputs, or answer fewer neighbours"
        )
    return Parity({step: float(difference[~known].max(initial=0)) for step, difference in largest.items()}, edge)


def _answered_otherwise(
    lowered: LoweredStack,
    served: Mapping[str, Mapping[str, NDArray[Any]]],
    answers: Mapping[str, Mapping[str, NDArray[Any]]],
    tolerance: float,
) -> NDArray[np.bool_]:
    """Rows whose outputs differ.

    Neighbours that change places, and a candidate's answer that does, need be no difference where a later step ranks.
    """
    one, other = output_answers(lowered, served), output_answers(lowered, answers)
    rows = [distance(one[name], other[name]).reshape(len(one[name]), -1).max(axis=1) for name in one]
    return np.asarray(np.max(rows, axis=0) > tolerance)


def _served_columns(
    tensor: NDArray[Any], columns: tuple[tuple[str, str], ...], answers: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The columns of a tensor that a later step may meet otherwise than answered, in the answers' dtype: numbers.

    Those with a fraction for their rounding; whole ones, a neighbour's id, where rounding decided which it is.
    """
    made, start = {}, 0
    for _, column in columns:
        width = int(np.prod(answers[column].shape[1:]))
        if tensor.dtype.kind == answers[column].dtype.kind and tensor.dtype.kind in "fi":
            made[column] = tensor[:, start : start + width].reshape(answers[column].shape).astype(answers[column].dtype)
        start += width
    return made


def check_answers(
    placement: Placement,
    inputs: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
    tolerance: float,
) -> None:
    """Compare a placement's answers with those that are expected.

    Args:
        placement: the stack as Triton models.
        inputs: the golden rows' tensors.
        expected: output -> what the training libraries answered, [rows] or of a list [rows, length].
        tolerance: largest difference allowed.

    Raises:
        ParityError: an output differs; the message names it and the row.
    """
    served = run_placement(placement, inputs)
    for name, answers in expected.items():
        given = served[name].reshape(answers.shape)
        difference = distance(given, answers)
        difference = difference if answers.ndim == 1 else difference.max(axis=1)
        row = int(difference.argmax())
        if difference[row] > tolerance:
            raise ParityError(
                f"output {name} differs from the training libraries by {difference[row]:.3g} (golden row {row}: "
                f"{answers[row]} became {given[row]}); nothing was exported"
            )


def _differences(
    model: PlacedModel, tensors: Mapping[str, NDArray[Any]], answers: Mapping[str, Mapping[str, NDArray[Any]]]
) -> NDArray[np.float64]:
    """Largest difference of each row over a model's tensors."""
    rows = [
        distance(tensors[name], _side_by_side(answers, columns, tensors[name].dtype)).max(axis=1)
        for name, columns in model.columns.items()
    ]
    return np.asarray(np.max(rows, axis=0))


def distance(served: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """|served - expected| / max(1, |expected|), element by element; equal, or both NaN, is 0, one NaN is infinite.

    Texts, whole numbers and booleans that are not equal are infinitely far apart: a code's neighbour is another code.
    """
    if served.dtype.kind not in "f":
        return np.asarray(np.where(served == expected, 0.0, np.inf))
    with np.errstate(invalid="ignore"):
        wide = expected.astype(np.float64)
        apart = np.abs(served.astype(np.float64) - wide) / np.maximum(1, np.abs(wide))
    same = (served == expected) | (np.isnan(served) & np.isnan(expected))
    return np.asarray(np.where(same, 0.0, np.nan_to_num(apart, nan=np.inf, posinf=np.inf)))


def _side_by_side(
    answers: Mapping[str, Mapping[str, NDArray[Any]]], columns: tuple[tuple[str, str], ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    every = [answers[step][column] for step, column in columns]
    return np.concatenate([values.astype(dtype).reshape(len(values), -1) for values in every], axis=1)


def _check_edge(
    step: LoweredStep,
    model: PlacedModel,
    tensors: Mapping[str, NDArray[Any]],
    served: Mapping[str, Mapping[str, NDArray[Any]]],
    frame: Any,
    off: NDArray[np.bool_],
    tolerance: float,
) -> None:
    """Rows that differ must be as the training library answers when it gets what the served step got.

    Or one of their candidates lies on an edge within the candidates' stack.
    """
    again = answer_step(step, served, frame)
    difference = _differences(model, tensors, {step.name: again})
    wrong = off & (difference > tolerance)
    if wrong.any() and isinstance(step.body, Candidates):
        on_edge = _on_edge(step.body, step.name, read_feeds(step, served, frame), wrong, tolerance)
        if on_edge.all():
            return
    if wrong.any():
        row = int(difference.argmax())
        name, columns = next(iter(model.columns.items()))
        expected = _side_by_side({step.name: again}, columns, tensors[name].dtype)[row]
        at = int(distance(tensors[name][row], expected).argmax())
        column = columns[at][1] if len(columns) == len(expected) else name
        raise ParityError(
            f"step {step.name} differs from its training library by {difference[row]:.3g} (golden row {row}, {column}: "
            f"{expected[at]} became {tensors[name][row][at]}); nothing was exported"
        )


def _on_edge(
    body: Candidates, step: str, feeds: Mapping[str, NDArray[Any]], rows: NDArray[np.bool_], tolerance: float
) -> NDArray[np.bool_]:
    """Which of some rows have a candidate on an edge within the candidates' stack, as `check_parity` finds them."""
    tensors = body.rows_of({name: values[rows] for name, values in feeds.items()})
    frame = frame_of(tensors, body.placement.signature.inputs)
    answers = reference_answers(body.lowered, frame)
    try:
        parity = check_parity(body.lowered, body.placement, tensors, answers, frame, tolerance, most=1.0)
    except ParityError as error:
        raise ParityError(f"step {step}: {error}") from error
    if parity.edge.sum() > MAX_EDGE_SHARE * len(rows) * body.count:
        raise ParityError(
            f"step {step}: {parity.edge.sum()} of {len(rows) * body.count} candidates of golden rows are answered "
            "otherwise than by the training libraries, because trees split where an earlier step's rounding decides; "
            "train the later forests on rounded inputs"
        )
    return np.asarray(parity.edge.reshape(-1, body.count).any(axis=1))
