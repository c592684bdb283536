"""A repository, model by model: what is in its version folder is counted, and nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tristage.export.size.forests import checkpoint_work, recipe_work
from tristage.export.size.graphs import graph_work
from tristage.export.size.recurrences import recurrence_work
from tristage.export.size.work import Sizes, Work, total
from tristage.manifest import Manifest
from tristage.serving.feature_files import current
from tristage.serving.program_file import (
    PROGRAM_FILE,
    CandidatesCall,
    ColumnsCall,
    FeaturesCall,
    ForestCall,
    ProgramFile,
    RecurrenceCall,
    SearchCall,
    SourceCall,
)

__all__ = ["sizes_of"]


def sizes_of(repository: Path, manifest: Manifest) -> Sizes:
    """Count the work of a row in an exported repository, of any target and layout.

    Raises:
        RepositoryError: a file cannot be read.
    """
    parts: dict[str, Work] = {}
    interpreted: list[str] = []
    saved: dict[str, int] = {}
    steps: dict[str, list[str]] = {}
    for step, model in manifest.models.items():
        steps.setdefault(model, []).append(step)
    folders = sorted(folder for folder in repository.iterdir() if (folder / "1").is_dir())
    for folder in folders:
        # on Triton's own backends a step may be several models: stack_step, stack_step__rows ...
        names = next((its for model, its in steps.items() if f"{folder.name}__".startswith(f"{model}__")), None)
        if names is None:
            continue
        found, rest, own = _version(folder / "1")
        if not own:
            interpreted += names
        for step, work in found.items():
            parts[step] = parts.get(step, Work()) + work
        others = [name for name in names if name not in found] or names
        label = ", ".join(others) if len(others) <= 3 else f"all other {len(others)} steps"
        parts[label] = parts.get(label, Work()) + rest
        saved[label] = sum(int(each["macs"]) for step in others for each in manifest.rewrites.get(step, ()))
    order = {step: place for place, step in enumerate(manifest.models)}
    known = dict(sorted(parts.items(), key=lambda part: order.get(part[0].split(",")[0], -1)))
    return Sizes(known, tuple(interpreted), saved)


def _version(folder: Path) -> tuple[dict[str, Work], Work, bool]:
    """What a model's version does, and whether there is anything that can be counted.

    Forests, searches and candidates by step, and the rest.
    """
    program = folder / PROGRAM_FILE
    if not program.is_file():
        graphs, checkpoints = sorted(folder.glob("*.onnx")), sorted(folder.glob("*.tl"))
        works = [graph_work([graph], {})[0] for graph in graphs] + [checkpoint_work(file) for file in checkpoints]
        return {}, total(works), bool(works) or not any(folder.glob("*.json"))
    named: dict[str, Work] = {}
    graphs, recurrences = [], []
    for part in ProgramFile.read(program).parts:
        match part:
            case ForestCall():
                work = recipe_work(folder / part.recipe)
                named[part.step] = named.get(part.step, Work()) + work
            case SearchCall():
                named[part.step] = _search(folder, part)
            case CandidatesCall():
                found, rest, _ = _version(folder / part.candidates)
                named[part.step] = total([*found.values(), rest]).times(part.count)
            case SourceCall():  # what a store does is not known here
                named[part.step] = Work()
            case FeaturesCall():
                found, rest, _ = _version(current(folder / part.features))
                named[part.step] = total([*found.values(), rest])
            case RecurrenceCall():
                recurrences.append(part)
            case ColumnsCall(graph=file) | str(file):  # columns are counted in the graph that they were made of
                graphs.append(folder / file)
    return named, _between(folder, graphs, recurrences), True


def _search(folder: Path, call: SearchCall) -> Work:
    size = (folder / call.index).stat().st_size
    if call.compared is None:
        return Work(table_bytes=size, searched=1)
    return Work(macs=call.compared * call.width, table_bytes=size)


def _between(folder: Path, graphs: Sequence[Path], recurrences: Sequence[RecurrenceCall]) -> Work:
    """A program's graphs, and the recurrences between them, whose steps the graphs before them say."""
    rest, shapes = graph_work(graphs, {}) if graphs else (Work(), {})
    layers: list[Work] = []
    given: dict[str, tuple[int, ...]] = {}
    for call in recurrences:
        steps = shapes.get(call.inputs, (1, 1))[1]
        work, width = recurrence_work(folder / call.recurrence, steps)
        layers.append(work)
        kinds = {"every": (1, steps, width), "last": (1, width), "cells": (1, width)}
        given |= {tensor: kinds[what] for what, tensor in call.makes.items()}
        rest, shapes = graph_work(graphs, given) if graphs else (Work(), given)
    return rest + total(layers)
