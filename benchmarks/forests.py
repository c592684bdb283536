"""Forest engines on one core: XGBoost, ONNX Runtime, oneDAL and the engine of our own, on the same forests and rows.

`python -m benchmarks.forests` from the repository's root trains 3,000 trees (once; a few minutes, kept in .cache),
checks that all engines answer alike, measures, and writes results/forests.json and results/forests.md.

Times are CPU time of this process, pinned to one core and one thread, the least of many repeats: another program on
the core then counts little. Compare ratios.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import daal4py
import numpy as np
import onnxruntime
import treelite
import xgboost

from tristage import __version__
from tristage.export.forest import Forest, ForestSet
from tristage.export.forest.to_engine import pack_forests
from tristage.export.forest.to_onnx import add_forests
from tristage.export.onnx_graph import GraphBuilder
from tristage.serving.forest import ForestEngine

RESULTS = Path(__file__).parent / "results"
CACHE = Path(__file__).parents[1] / ".cache" / "benchmarks"
FEATURES, DEPTH, TREES = 70, 8, 3000
BATCHES = (1, 16, 256, 4096)
SECONDS = 0.6  # at least, for one engine at one batch size
TARGETS = ("reply", "retweet", "quote", "like")

Prepare = Callable[[np.ndarray], Callable[[], Any]]  # rows -> what answers them, and is measured


@dataclass(frozen=True)
class Part:
    """One booster and how its columns are moved: column f of the booster is column moved[f] of the rows."""

    booster: xgboost.Booster
    moved: np.ndarray


@dataclass(frozen=True)
class Case:
    """Forests that are measured together: for each target a bag, whose probabilities are averaged.

    `bars` says how many times faster than the fastest library, or than XGBoost, the engine is to be, by batch size.
    """

    name: str
    bags: tuple[tuple[Part, ...], ...]
    bars: dict[int, float]
    against: str = "fastest"


@dataclass(frozen=True)
class Cell:
    """One case at one batch size: microseconds a row of each engine."""

    case: str
    trees: int
    batch: int
    microseconds: dict[str, float]
    furthest: dict[str, float]
    ratio: float
    bar: float
    against: str


def train() -> xgboost.Booster:
    """Three thousand trees of 8 levels and about 160 leaves on rows with missing values; kept for the next time."""
    path = CACHE / f"forests-{TREES}.ubj"
    if not path.exists():
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(20_000, FEATURES)).astype(np.float32)
        margin = rows[:, 0] + 0.3 * rows[:, 1] ** 2 - rows[:, 2] * rows[:, 3]
        labels = rng.random(len(rows)) < 1 / (1 + np.exp(-margin))
        rows[rng.random(rows.shape) < 0.05] = np.nan
        options = {"objective": "binary:logistic", "max_depth": DEPTH, "eta": 0.01, "min_child_weight": 0.1}
        options |= {"lambda": 0.1, "subsample": 0.7, "colsample_bytree": 0.2}
        path.parent.mkdir(parents=True, exist_ok=True)
        xgboost.train(options, xgboost.DMatrix(rows, labels), TREES).save_model(path)
    booster = xgboost.Booster(model_file=path)
    booster.set_param({"nthread": 1})
    return booster


def cases(booster: xgboost.Booster) -> list[Case]:
    """What is measured, and the bars it is to clear."""
    straight = np.arange(FEATURES)
    quarter = [Part(booster[250 * number : 250 * (number + 1)], straight) for number in range(12)]
    moved = [np.random.default_rng(number).permutation(FEATURES) for number in range(5)]
    near = dict.fromkeys(BATCHES, 0.9)
    return [
        Case("250 trees", ((Part(booster[:250], straight),),), near),
        Case("1,000 trees", ((Part(booster[:1000], straight),),), near),
        Case(
            "XGB1: 4 targets x 3 bags x 250 trees",
            tuple(tuple(quarter[target::4]) for target in range(4)),
            {1: 10, 4096: 1.5},
            "xgboost",
        ),
        Case("15,000 trees", (tuple(Part(booster, to) for to in moved),), {1: 8, 256: 1.3, 4096: 1.3}),
    ]


def forest_of(part: Part) -> Forest:
    """The part as Treelite holds it, its columns moved."""
    model = treelite.frontend.from_xgboost(part.booster)
    for number in range(model.num_tree):
        tree = model.get_tree_accessor(number)
        feature = tree.get_field("split_index").copy()
        feature[feature >= 0] = part.moved[feature[feature >= 0]]
        tree.set_field("split_index", feature)
    return Forest(
        model, "sigmoid", FEATURES, None, 1, lambda rows: part.booster.inplace_predict(rows[:, part.moved]), None
    )


def engines(case: Case, folder: Path) -> dict[str, Prepare]:
    """Every engine by name; all answer [rows, targets], or [rows] for one forest."""
    targets = TARGETS[: len(case.bags)] if len(case.bags) > 1 else (None,)
    bags = [tuple(forest_of(part) for part in bag) for bag in case.bags]
    forests = ForestSet({(None, target): bag for target, bag in zip(targets, bags, strict=True)}, (None,), targets)

    def of_xgboost(rows: np.ndarray) -> Callable[[], Any]:
        own = [[(part, np.ascontiguousarray(rows[:, part.moved])) for part in bag] for bag in case.bags]
        return lambda: _average([[part.booster.inplace_predict(rows) for part, rows in bag] for bag in own])

    graph = GraphBuilder()
    answers = add_forests(graph, graph.input("rows", "float32", FEATURES), forests, None)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = graph.model([("out", answers, "float32", len(bags))]).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    (folder / "packed.forest").write_bytes(pack_forests(forests))
    engine = ForestEngine(folder / "packed.forest")
    found: dict[str, Prepare] = {
        "xgboost": of_xgboost,
        "onnxruntime": lambda rows: lambda: session.run(None, {"rows": rows})[0],
    }
    daal4py.daalinit(1)
    converted = [[daal4py.mb.convert_model(forest.model) for forest in bag] for bag in bags]
    found["onedal"] = lambda rows: (
        lambda: _average([[model.predict_proba(rows)[:, 1] for model in bag] for bag in converted])
    )
    return found | {"engine": lambda rows: lambda: engine.predict(rows)}


def _average(bags: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Probabilities of each bag's forests -> their means, [rows, targets]."""
    if len(bags) == 1 and len(bags[0]) == 1:
        return bags[0][0]
    return np.stack([np.mean(bag, axis=0) for bag in bags], axis=1)


def measure(predicts: dict[str, list[Callable[[], Any]]]) -> dict[str, float]:
    """The least CPU time of one call of each engine, in seconds; engines take turns, and meet other rows every call."""
    least = dict.fromkeys(predicts, float("inf"))
    until = time.perf_counter() + SECONDS * len(predicts)
    turns = 0
    while turns < 3 or time.perf_counter() < until:
        for name, calls in predicts.items():
            start = time.process_time()
            for call in calls:
                call()
            least[name] = min(least[name], (time.process_time() - start) / len(calls))
        turns += 1
    return least


def run(case: Case, rows: np.ndarray, folder: Path) -> list[Cell]:
    """One case at every batch size it has."""
    prepared = engines(case, folder)
    trees = sum(part.booster.num_boosted_rounds() for bag in case.bags for part in bag)
    cells = []
    for batch in BATCHES:
        samples = [np.ascontiguousarray(sample) for sample in np.split(rows, len(rows) // batch)[:64]]
        predicts = {name: [prepare(sample) for sample in samples] for name, prepare in prepared.items()}
        answers = {name: np.asarray(calls[0]()).reshape(batch, -1) for name, calls in predicts.items()}
        furthest = {name: float(np.abs(answer - answers["xgboost"]).max()) for name, answer in answers.items()}
        if furthest["engine"] > 1e-6:
            raise SystemExit(f"{case.name}: the engine is {furthest['engine']:.1e} off XGBoost's answers")
        times = {name: seconds / batch * 1e6 for name, seconds in measure(predicts).items()}
        others = [times["xgboost"]] if case.against == "xgboost" else [t for n, t in times.items() if n != "engine"]
        ratio = min(others) / times["engine"]
        cells.append(Cell(case.name, trees, batch, times, furthest, ratio, case.bars.get(batch, 0.0), case.against))
        print(cells[-1])
    return cells


def table(cells: Sequence[Cell]) -> str:
    """The figures as Markdown."""
    names = list(cells[0].microseconds)
    lines = ["| forests | batch | " + " | ".join(names) + " | times faster | than | bar |"]
    lines.append("|---" * (len(names) + 5) + "|")
    for cell in cells:
        figures = " | ".join(f"{cell.microseconds[name]:.2f}" for name in names)
        bar = f"{cell.bar:g}{'' if cell.ratio >= cell.bar else ', missed'}" if cell.bar else ""
        lines.append(f"| {cell.case} | {cell.batch} | {figures} | {cell.ratio:.1f} | {cell.against} | {bar} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every case in one run and write the results."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(max(BATCHES), FEATURES)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.05] = np.nan
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(train()):
            cells += run(case, rows, Path(folder))
    versions = {"tristage": __version__, "xgboost": xgboost.__version__, "onnxruntime": onnxruntime.__version__}
    document = {
        "created": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "versions": versions,
        "cells": [asdict(cell) for cell in cells],
    }
    (RESULTS / "forests.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    furthest = max(cell.furthest["engine"] for cell in cells)
    text = [
        "# Forest engines on one core",
        f"`python -m benchmarks.forests`, {document['created']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". Microseconds a row, CPU time, one thread on one core; {FEATURES} features, {DEPTH} levels.",
        table(cells),
        f"The engine's answers are at most {furthest:.1e} off XGBoost's. The 15,000 trees are the same 3,000 five "
        "times, each time with other columns. A bar of 0.9 means: within 10% of the fastest library, or faster.",
    ]
    (RESULTS / "forests.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))


if __name__ == "__main__":
    main()
