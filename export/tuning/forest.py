"""One forest step: every engine that can take it, compared with the training library and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.check import distance
from tristage.export.forest import ForestSet
from tristage.export.forest.engine_nodes import EngineRefusal
from tristage.export.forest.engines import CANDIDATES, DEFAULTS
from tristage.export.forest.sources import read_sources
from tristage.export.tuning.choose import choose
from tristage.export.tuning.rows import draw
from tristage.serving.forest import ForestError, OpenForest, open_forest
from tristage.tuning import ForestTuning

__all__ = ["TOLERANCE", "Measure", "Subject", "Tuned", "library_answers", "tune_forest"]

TOLERANCE = 1e-6  # from the training library, relative above 1, so that margins and counts are measured alike
DRAWN = 512
Rows = NDArray[np.float32]
Groups = NDArray[np.int64] | None
Measure = Callable[[Mapping[str, OpenForest], Rows, Groups, int], Mapping[str, float]]


@dataclass(frozen=True)
class Subject:
    """A forest step of a repository.

    Attributes:
        step: its name.
        recipe: its recipe, in a folder with its trees that engines' files may be written to.
        rows: the golden rows' features, [rows, features]; None where they are not known.
        groups: [rows], the number of each golden row's group; None without groups.
        why: why the golden rows are not known.
    """

    step: str
    recipe: Path
    rows: Rows | None
    groups: Groups
    why: str


@dataclass(frozen=True)
class Tuned:
    """What was measured, and the engines that answer, the default among them; and the library itself."""

    tuning: ForestTuning
    engines: Mapping[str, OpenForest]
    forests: ForestSet


def tune_forest(subject: Subject, batches: Sequence[int], measure: Measure) -> Tuned:
    """Compare and measure every engine on a step's forests.

    Args:
        subject: the step.
        batches: rows of a call to measure.
        measure: (engines, rows, groups, batch) -> milliseconds of each engine.

    Raises:
        ForestError: the recipe cannot be read, or no engine answers.
        ArtifactError or RepositoryError: its trees cannot be read.
    """
    forests = read_sources(subject.recipe)
    samples, words = _samples(subject, forests)
    opened, left_out = _open(forests, subject.recipe)
    default = next(name for name in DEFAULTS if name in opened)
    differences: dict[str, float] = {}
    for name, engine in opened.items():
        try:
            differences[name] = max(
                float(distance(engine.predict(rows, groups), expected).max(initial=0.0))
                for rows, groups, expected in samples
            )
        except ForestError as error:
            left_out[name] = str(error)
            continue
        if differences[name] > TOLERANCE:
            left_out[name] = f"its answers are {differences[name]:.1e} off {_reference(forests)}'s"
    engines = {name: engine for name, engine in opened.items() if name not in left_out}
    if not engines:  # somebody must answer; the export has proven the default to 1e-5
        engines = {default: opened[default]}
        left_out[default] += "; it answers for want of another"
    rows, groups, _ = samples[0]
    milliseconds = {batch: dict(measure(engines, rows, groups, batch)) for batch in batches}
    chosen = choose(milliseconds, default)
    tuning = ForestTuning(
        rows=words,
        reference=_reference(forests),
        default=default,
        engines=chosen,
        milliseconds=milliseconds,
        differences=differences,
        left_out=left_out,
    )
    return Tuned(tuning, {name: opened[name] for name in {default, *(each.engine for each in chosen)}}, forests)


def _open(forests: ForestSet, recipe: Path) -> tuple[dict[str, OpenForest], dict[str, str]]:
    """Every engine that can take the forests, opened with one thread; and why the others cannot."""
    opened: dict[str, OpenForest] = {}
    left_out: dict[str, str] = {}
    for name, candidate in CANDIDATES.items():
        if candidate.joins and len(forests.all()) == len(forests.groups):
            continue
        file = recipe.with_name(recipe.stem + candidate.suffix)
        try:
            candidate.write(forests, file)
            opened[name] = open_forest(candidate.engine, file)
        except (EngineRefusal, ForestError) as error:
            left_out[name] = str(error)
    return opened, left_out


def _samples(subject: Subject, forests: ForestSet) -> tuple[list[tuple[Rows, Groups, Rows]], str]:
    """Rows, their groups and what is right for them, those to measure first; and the rows in words."""
    drawn, groups = draw(forests, DRAWN)
    samples = []
    words = f"{DRAWN} rows drawn around its thresholds, for {subject.why}"
    if subject.rows is not None:
        samples.append((subject.rows, subject.groups, library_answers(forests, subject.rows, subject.groups)))
        words = f"{len(subject.rows)} golden rows, and {DRAWN} drawn around its thresholds"
    try:
        samples.append((drawn, groups, library_answers(forests, drawn, groups)))
    except ArtifactError as error:
        if not samples:
            raise
        words = f"{len(samples[0][0])} golden rows; {error}"
    return samples, words


def library_answers(forests: ForestSet, rows: Rows, groups: Groups) -> Rows:
    """What the training library answers, each row by its group's forests; NaN for a row of no group."""
    if groups is None:
        return forests.answer(rows, None)
    answers = np.full((len(rows), forests.width), np.nan, np.float32)
    for number, group in enumerate(forests.groups):
        members = groups == number
        if members.any():
            answers[members] = forests.answer(rows[members], group)
    return answers


def _reference(forests: ForestSet) -> str:
    return "XGBoost" if all(forest.booster is not None for forest in forests.all()) else "Treelite"
