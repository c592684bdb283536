"""Goes through a repository's models as a request does, with the golden rows, and has every forest measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tristage.errors import ParityError, RepositoryError
from tristage.export.check import MAX_EDGE_SHARE, distance
from tristage.export.config import read_configs
from tristage.export.forest.engines import CANDIDATES
from tristage.export.repository import forest_files
from tristage.export.tuning.forest import TOLERANCE, Measure, Subject, Tuned, library_answers, tune_forest
from tristage.export.tuning.golden import (
    Tensors,
    golden_tensors,
    off_golden,
    open_model,
    read_golden,
    run,
)
from tristage.manifest import Manifest
from tristage.serving.forest import ForestError
from tristage.serving.graph import GraphError, Runnable
from tristage.serving.program import open_part
from tristage.serving.program_file import PROGRAM_FILE, Choice, ForestCall, Part, ProgramFile
from tristage.tuning import ForestTuning

__all__ = ["Golden", "Walk"]


@dataclass(frozen=True)
class Golden:
    """Golden rows that all chosen engines answer as expected, a pyarrow.Table; and what is said of the others."""

    table: Any
    note: str


class Walk:
    """One way through a repository."""

    def __init__(
        self,
        repository: Path,
        manifest: Manifest,
        scratch: Path,
        batches: Sequence[int],
        trust: bool,
        on_stage: Callable[[str], None],
        measure: Measure,
    ) -> None:
        """Start at the raw columns; arguments are those of `tune`, and a folder that engines' files are written to."""
        self._repository, self._manifest, self._scratch = repository, manifest, scratch
        self._batches, self._trust, self._on_stage, self._measure = batches, trust, on_stage, measure
        self._table = read_golden(repository, manifest)
        self._known: Tensors | None = None if self._table is None else golden_tensors(self._table, manifest)
        self._why = "there are no golden rows"
        self._steps: list[Callable[[Tensors, int], Tensors]] = []  # of the way, for calls of so many rows
        self._tuned: list[Tuned] = []

    def tune(self) -> tuple[dict[str, ProgramFile], dict[str, ForestTuning]]:
        """The new program of each model that has one, and what was measured of each step."""
        programs: dict[str, ProgramFile] = {}
        forests: dict[str, ForestTuning] = {}
        for model, _ in read_configs(self._repository, self._manifest.stack):
            version = self._repository / model / "1"
            if not (version / PROGRAM_FILE).is_file():
                self._graph(version, lambda folder: open_model(folder, self._trust))
                continue
            said = ProgramFile.read(version / PROGRAM_FILE)
            parts: list[Part] = []
            for part in said.parts:
                if isinstance(part, ForestCall):
                    self._on_stage(part.step)
                    call, forests[part.step] = self._forest(part, version)
                    parts.append(call)
                else:
                    self._graph(version, partial(open_part, part=part))
                    parts.append(part)
            programs[model] = ProgramFile(tuple(parts), said.named)
            self._go(_renamed(said))
        return programs, forests

    def golden(self) -> Golden | None:
        """The golden rows that stay, and what to say of those that don't; None where all stay.

        A tree that splits on an earlier forest's answer sends a row that lies on the split's edge the other way where
        another engine rounds that answer otherwise. Every chosen engine is compared with the library on what it reads
        then, so that nothing else can be why an answer differs.

        Raises:
            ParityError: more than MAX_EDGE_SHARE of the rows go, or an engine differs from the library.
        """
        if self._known is None:
            return None
        others = {
            tuple(_chosen(tuned.tuning, batch) for tuned in self._tuned): batch for batch in reversed(self._batches)
        }
        others.pop(tuple(tuned.tuning.default for tuned in self._tuned), None)  # the export has been through those
        off = off_golden(self._table, self._manifest, self._known)
        for batch in others.values():
            tensors = golden_tensors(self._table, self._manifest)
            for step in self._steps:
                tensors.update(step(tensors, batch))
            off |= off_golden(self._table, self._manifest, tensors)
        if not off.any():
            return None
        if off.mean() > MAX_EDGE_SHARE:
            raise ParityError(
                f"the chosen engines answer {off.sum()} of {len(off)} golden rows otherwise than the training "
                "libraries, more than rounding on splits' edges explains; the repository is as it was"
            )
        note = (
            f"{off.sum()} golden rows were left out when engines were chosen: they lie on a split's edge, where a tree "
            "goes the other way for a difference of less than 1e-6 in an earlier forest's answer"
        )
        return Golden(self._table.filter(~off), note)

    def _go(self, step: Callable[[Tensors, int], Tensors]) -> None:
        """Take the golden rows one step on, as far as they can be followed."""
        if self._known is None:
            return
        try:
            self._known.update(step(self._known, 0))
        except GraphError as error:
            self._known, self._why = None, f"the golden rows cannot be followed: {error}"
        self._steps.append(step)

    def _graph(self, path: Path, opened: Callable[[Path], Runnable]) -> None:
        most = self._manifest.signature.max_batch
        graphs: list[Runnable] = []

        def step(tensors: Tensors, batch: int) -> Tensors:
            if not graphs:
                graphs.append(opened(path))
            return run(graphs[0], tensors, most)

        self._go(step)

    def _forest(self, call: ForestCall, version: Path) -> tuple[ForestCall, ForestTuning]:
        rows = groups = None
        if self._known is not None:
            rows = self._known[call.rows]
            groups = None if call.group is None else self._known[call.group].reshape(-1)
        for name in forest_files(replace(call, engines=()), version):
            if not (self._scratch / name).exists():
                (self._scratch / name).symlink_to((version / name).resolve())
        subject = Subject(call.step, self._scratch / call.recipe, rows, groups, self._why)
        try:
            tuned = tune_forest(subject, self._batches, self._measure)
        except ForestError as error:
            raise RepositoryError(f"step {call.step}: {error}") from error

        def step(tensors: Tensors, batch: int) -> Tensors:
            group = None if call.group is None else tensors[call.group].reshape(-1)
            name = _chosen(tuned.tuning, batch)
            answers = tuned.engines[name].predict(tensors[call.rows], group)
            if batch and name not in tuned.tuning.left_out:  # it reads what other engines answered, not the default
                expected = library_answers(tuned.forests, tensors[call.rows], group)
                apart = float(distance(answers, expected).max())
                if apart > TOLERANCE:
                    raise ParityError(
                        f"step {call.step}: {name} is {apart:.1e} off {tuned.tuning.reference}'s answers where it "
                        "reads what other engines answered; the repository is as it was"
                    )
            return {call.output: answers}

        self._tuned.append(tuned)
        self._go(step)
        stem = Path(call.recipe).stem
        engines = tuple(
            Choice(chosen.rows, CANDIDATES[chosen.engine].engine, stem + CANDIDATES[chosen.engine].suffix)
            for chosen in tuned.tuning.engines
        )
        return replace(call, engines=engines), tuned.tuning


def _chosen(tuning: ForestTuning, batch: int) -> str:
    """Who answers so many rows; of none, the default."""
    if batch == 0:
        return tuning.default
    return next(chosen.engine for chosen in tuning.engines if chosen.rows is None or batch <= chosen.rows)


def _renamed(said: ProgramFile) -> Callable[[Tensors, int], Tensors]:
    return lambda tensors, batch: {name: tensors[tensor] for name, tensor in said.named.items()}
