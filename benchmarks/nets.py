"""The three nets of the RecSys 2021 stack on one core: their framework's eval mode, ONNX Runtime, and tristage.

`python -m benchmarks.nets` from the repository's root makes the nets at the original's layer sizes (untrained, which
changes no cost), checks that all answer alike, measures, and writes results/nets.json and results/nets.md.

"ONNX Runtime" is the exported graph without rewrites; "Scan" has every rewrite but the recurrence engine, as native
targets have; "tristage" is what the runner serves. Times are CPU time of this process, pinned to one core and one
thread, the least of many calls in turns. Compare ratios.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import onnxruntime

from examples.recsys2021.sizes import SMALL
from tristage import __version__
from tristage.columns import Column
from tristage.export.check import open_model
from tristage.export.lower import lower
from tristage.export.place import place
from tristage.export.rewrites import REWRITES
from tristage.stack import ListInput, NetStep, Stack

RESULTS = Path(__file__).parent / "results"
SIZES = dataclasses.replace(SMALL, vocabulary=119_547)
USERS = 200_000
BATCHES = (1, 16, 256)
SECONDS = 1.0  # at least, for one way at one batch size
WAYS: dict[str, tuple[str, ...] | None] = {
    "ONNX Runtime": (),
    "Scan": tuple(rewrite.name for rewrite in REWRITES if not rewrite.engine),
    "tristage": None,
}
# net, batch -> how many times faster than its framework, at least
BARS = {("NN3", 1): 1.5, ("NN3", 256): 4.0, ("NN2", 256): 3.0}
# batch -> milliseconds of all three together, at most
TOGETHER = {1: 0.5, 256: 0.2}

Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Cell:
    """One net at one batch size: microseconds a row of each way."""

    net: str
    batch: int
    microseconds: dict[str, float]
    furthest: float
    ratio: float
    bar: float | None


def rows_of(count: int) -> dict[str, np.ndarray]:
    """Inputs of every net, by the net's name for them."""
    draw = np.random.default_rng(0)
    rows: dict[str, np.ndarray] = {
        "tokens": draw.integers(1, SIZES.vocabulary, (count, 48)),
        "hashtags": draw.integers(0, 400, (count, 8)),
        "categories": draw.integers(0, 50, (count, 20)),
        "a_user": draw.integers(0, USERS, count),
        "b_user": draw.integers(0, USERS, count),
    }
    for name, most in (("tweet_type", 4), ("language", 66), ("media", 14), ("weekday", 7)):
        rows[name] = draw.integers(0, most, count)
    for name, width in (("tweet", 3), ("reader", 3), ("other", 31), ("numeric27", 27), ("numeric36", 36)):
        rows[name] = draw.normal(size=(count, width)).astype(np.float32)
    return rows


def nets() -> dict[str, tuple[Any, dict[str, str]]]:
    """Each net, and its inputs' names -> those of `rows_of`."""
    import keras
    import torch

    from examples.recsys2021 import nn1
    from examples.recsys2021.nn2 import NN2, WIDTHS
    from examples.recsys2021.nn3 import NN3

    torch.set_num_threads(1)
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    table = torch.randn(SIZES.vocabulary, SIZES.bert) * 0.05
    kinds = dict.fromkeys((*WIDTHS, *(f"x{i}" for i in range(15))), 50)
    first = nn1.build(SIZES, USERS, {"c_tweet_type": 4, "c_language": 66, "c_media": 14, "c_weekday": 7}, 27)
    users = ("a_user", "b_user")
    reads = {
        "NN1": ("tokens", *users, "tweet_type", "language", "media", "weekday", "numeric27"),
        "NN2": ("tokens", "b_user", "hashtags", "categories", "tweet", "reader", "other"),
        "NN3": ("tokens", *users, "language", "media", "tweet_type", "numeric36"),
    }
    named = {net: {name.rstrip("0123456789"): name for name in names} for net, names in reads.items()}
    made: dict[str, Any] = {
        "NN1": first,
        "NN2": NN2(SIZES, table, USERS, 400, kinds, 28),
        "NN3": NN3(SIZES, table, USERS, 67, 15, 4, 36),
    }
    some = rows_of(4)
    batch = torch.export.Dim("rows", min=1, max=65536)
    for net in ("NN2", "NN3"):
        given = {name: torch.from_numpy(some[column]) for name, column in named[net].items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made[net] = torch.export.export(
                made[net].eval(), (), given, dynamic_shapes={name: {0: batch} for name in given}, strict=False
            )
    return {net: (made[net], named[net]) for net in made}


def served(net: Any, names: dict[str, str], rewrites: tuple[str, ...] | None, folder: Path) -> tuple[Any, Any]:
    """What the runner would open, and the framework's own predict."""
    rows = rows_of(1)
    columns = {
        name: Column(name, str(rows[of].dtype), *((rows[of].shape[1], 0) if rows[of].ndim == 2 else ()))
        for name, of in names.items()
    }
    lists = {name: ListInput(column.length, 0) for name, column in columns.items() if column.length}
    step = NetStep(net, {name: (name,) for name in names}, rewrites)
    lowered = lower(Stack("s", {"nn": step}, {"y": "nn.score0"}, inputs=lists), columns, tables=folder)
    body: Any = lowered.steps[0].body
    return open_model(place(lowered, 1024).models[0], folder), body


def measure(ways: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """The least CPU time of one call, in seconds; ways take turns."""
    least = dict.fromkeys(ways, float("inf"))
    until, turns = time.perf_counter() + SECONDS * len(ways), 0
    while turns < 5 or time.perf_counter() < until:
        for name, call in ways.items():
            start = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - start)
        turns += 1
    return least


def run(name: str, net: Any, names: dict[str, str], folder: Path) -> tuple[list[Cell], list[str], Any]:
    """One net at every batch size, what its rewrites found, and the net as it is served."""
    opened = {way: served(net, names, rewrites, folder) for way, rewrites in WAYS.items()}
    body = opened["tristage"][1]
    cells = []
    for batch in BATCHES:
        rows = rows_of(batch)
        given = {own: rows[of] for own, of in names.items()}
        wide = {own: values if values.ndim == 2 else values[:, None] for own, values in given.items()}
        ways: dict[str, Callable[[], Any]] = {"framework": lambda given=given: body.predict(given)}
        ways |= {way: lambda graph=graph, wide=wide: graph.run(wide) for way, (graph, _) in opened.items()}
        wanted = body.predict(given)[0][:, 0]
        furthest = max(float(np.abs(ways[way]()["y"][:, 0] - wanted).max()) for way in WAYS)
        if furthest > 1e-5:
            raise SystemExit(f"{name}: {furthest:.1e} off the framework")
        times = {way: seconds / batch * 1e6 for way, seconds in measure(ways).items()}
        ratio = times["framework"] / times["tristage"]
        cells.append(Cell(name, batch, times, furthest, ratio, BARS.get((name, batch))))
        print(cells[-1])
    return cells, [str(finding) for finding in body.rewritten], opened["tristage"][0]


def run_together(opened: list[tuple[Any, dict[str, str]]]) -> dict[int, float]:
    """Milliseconds a row, by batch size, of one call that asks all nets one after the other."""
    made = {}
    for batch in BATCHES:
        rows = rows_of(batch)
        given = [
            (graph, {own: rows[of] if rows[of].ndim == 2 else rows[of][:, None] for own, of in names.items()})
            for graph, names in opened
        ]
        times = measure({"all": lambda given=given: [graph.run(wide) for graph, wide in given]})
        made[batch] = times["all"] / batch * 1000
    return made


def table(cells: list[Cell]) -> str:
    """The figures as Markdown."""
    names = list(cells[0].microseconds)
    lines = ["| net | batch | " + " | ".join(names) + " | times faster than the framework | bar |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for cell in cells:
        figures = " | ".join(f"{cell.microseconds[name]:.1f}" for name in names)
        bar = "" if cell.bar is None else f"{cell.bar:g}{'' if cell.ratio >= cell.bar else ', missed'}"
        lines.append(f"| {cell.net} | {cell.batch} | {figures} | {cell.ratio:.1f} | {bar} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every net in one run and write the results."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cells, found, opened = [], {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, (net, names) in nets().items():
            made, found[name], graph = run(name, net, names, Path(folder))
            cells += made
            opened.append((graph, names))
        together = run_together(opened)
    import keras
    import torch

    versions = {"tristage": __version__, "torch": torch.__version__, "keras": keras.__version__}
    versions["onnxruntime"] = onnxruntime.__version__
    document = {
        "created": time.strftime("%Y-%m-%d"),
        "versions": versions,
        "cells": [asdict(cell) for cell in cells],
        "together_ms": together,
        "rewrites": found,
    }
    (RESULTS / "nets.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = [
        "# The nets of the RecSys 2021 stack on one core",
        f"`python -m benchmarks.nets`, {document['created']}, "
        + ", ".join(f"{library} {version}" for library, version in versions.items())
        + f". Microseconds a row, CPU time, one thread on one core; the original's layer sizes, {USERS:,} users.",
        table(cells),
        "| all three in one call, batch | ms a row | at most |\n|---|---|---|\n"
        + "\n".join(
            f"| {batch} | {most:.3f} | {TOGETHER[batch]:g}{', missed' if most > TOGETHER[batch] else ''} |"
            if batch in TOGETHER
            else f"| {batch} | {most:.3f} | |"
            for batch, most in together.items()
        ),
        f"All answers are within {max(cell.furthest for cell in cells):.1e} of the framework's. ONNX Runtime: the "
        "graph as exported. Scan: with every rewrite that leaves plain ONNX. tristage: with the recurrence engine too.",
        "\n".join(f"- {net}: {each}" for net, findings in found.items() for each in findings),
    ]
    (RESULTS / "nets.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))


if __name__ == "__main__":
    main()
