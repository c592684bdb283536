"""Trains the whole stack: `python -m examples.recsys2021.train --size small -o FOLDER`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from rich.table import Table

from examples.recsys2021 import TARGETS
from examples.recsys2021.kept import aside, kept_array, only_one, replace, work_folder
from examples.recsys2021.metrics import grouped_scores
from examples.recsys2021.nets_process import NetsProcess
from examples.recsys2021.prepare import Data, Task, prepare, write_rows
from examples.recsys2021.sizes import SIZES, SMALL, Sizes
from examples.recsys2021.wiring import expand, net_inputs, reads, stack_file
from tristage.terminal import console, out, progress

__all__ = ["ARTIFACTS", "STAGE1", "Trained", "scores_table", "train"]

PACKAGE = Path(__file__).parent
ARTIFACTS = PACKAGE / "artifacts"
STAGE1 = ("xgb1", "xgb2", "xgb3", "nn1", "nn2", "nn3")
FINGERPRINT = "fingerprint"
MODULES = (
    "__init__",
    "features",
    "forests",
    "kept",
    "keyed",
    "metrics",
    "nets",
    "nets_process",
    "nn1",
    "nn2",
    "nn3",
    "operators",
    "prepare",
    "rows",
    "text",
    "train",
    "wiring",
)

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Trained:
    """What `train` leaves.

    Attributes:
        folder: the artifacts; `stack.yaml` among them.
        scores: model -> "ap" or "rce" -> target or "average" -> the metric on the test rows; the final stack's model
            name is "stack".
        reused: whether the folder held them already.
    """

    folder: Path
    scores: Scores
    reused: bool


def train(sizes: Sizes = SMALL, folder: Path | None = None, *, retrain: bool = False) -> Trained:
    """Train the stack, or find it trained.

    What was made is kept as it is done, in a folder beside the artifacts: a training that was stopped goes on where it
    stood, if the sizes and this source are still the same.

    Args:
        sizes: how large everything is.
        folder: where the artifacts go; `artifacts/<size>` beside this file when None. What was there is replaced, once
            the training is through.
        retrain: train anew even if the folder holds what these sizes and this source make, or a part of it is kept.

    Raises:
        ArtifactError: the process that trains NN2 and NN3 failed.
    """
    folder = ARTIFACTS / sizes.name if folder is None else Path(folder)
    mark = _fingerprint(sizes)
    kept = folder / FINGERPRINT
    with only_one(folder):
        if not retrain and kept.is_file() and kept.read_text() == mark:
            return Trained(folder, json.loads((folder / "scores.json").read_text()), True)
        work = work_folder(folder, mark, retrain)
        with progress() as bars, _quiet():
            scores = _train(sizes, work, bars)
        (work / FINGERPRINT).write_text(mark)
        replace(work, folder)
    return Trained(folder, scores, False)


def _train(sizes: Sizes, work: Path, bars: Progress) -> Scores:
    task = functools.partial(_task, bars)
    with NetsProcess(sizes, bars, work) as nets:
        with task("loading NVTabular, TensorFlow and XGBoost", 1):
            import nvtabular  # noqa: F401

            from examples.recsys2021 import nn1
        data = prepare(sizes, work, task)
        _send_nets_off(nets, sizes, data)
        answers = {"nn1": _train_nn1(sizes, work, data, task, nn1)}
        answers.update(_train_stage1_forests(sizes, work, data, task))
        answers.update(nets.answers())
    final = _train_stage2(sizes, work, data, answers, task)

    with task("scoring and writing", 1):
        test = data.test[data.week == 3]
        group = data.made["author_group"].to_numpy()[data.test]
        every = {name: answers[name][test] for name in STAGE1} | {name: value[test] for name, value in final.items()}
        scores = {name: grouped_scores(data.targets[data.test], value, group) for name, value in every.items()}
        (work / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
        shutil.copy(stack_file(sizes), work / "stack.yaml")
        write_rows(sizes, work)
    return scores


def _train_nn1(sizes: Sizes, work: Path, data: Data, task: Task, nn1: Any) -> NDArray[np.float32]:
    inputs = net_inputs("nn1", data.made, sizes)
    learn, week4 = np.flatnonzero(data.week < 3)[-sizes.nn1_rows :], data.week == 3
    batches = sizes.nn1_epochs * -(-len(learn) // sizes.nn1_batch)
    answers = []
    with task("nn1 (Keras)", sizes.nn1_nets * batches) as step:
        for index in range(sizes.nn1_nets):
            name = "nn1" if sizes.nn1_nets == 1 else f"nn1-{index}"

            def answer(index: int = index, name: str = name) -> NDArray[np.float32]:
                learned = {key: values[learn] for key, values in inputs.items()}
                net = nn1.fit(sizes, sizes.seed + index, learned, data.targets[learn], data.cardinalities, step)
                with aside(work / f"{name}.keras") as part:
                    net.save(part)
                asked = {key: values[week4] for key, values in inputs.items()}
                return np.asarray(net.predict(asked, batch_size=2048, verbose=0), np.float32)

            answers.append(kept_array(work / f"{name}.npy", answer))
    return np.asarray(np.mean(answers, axis=0), np.float32)


def _train_stage1_forests(sizes: Sizes, work: Path, data: Data, task: Task) -> dict[str, NDArray[np.float32]]:
    from examples.recsys2021 import forests
    from examples.recsys2021.features import matrix

    week3, week4 = data.week == 2, data.week == 3
    group = data.made["author_group"].to_numpy()
    every = np.ones(int(week3.sum()), bool)
    half = np.random.default_rng(sizes.seed).random(len(every)) < 0.7
    plans = {
        "xgb1": (sizes.xgb1_trees, [f"-{bag}" for bag in range(sizes.xgb1_bags)], [every] * sizes.xgb1_bags, 0.5),
        "xgb2": (sizes.xgb2_trees, [""], [half], 0.3),
        "xgb3": (sizes.xgb3_trees, [f"-{at}" for at in range(5)], [group[week3] == at for at in range(5)], 0.5),
    }
    answers = {}
    for name, (trees, labels, parts, share) in plans.items():
        with task(name, 4 * len(labels)) as step:
            columns = forests.columns_of(name, list(data.made.columns), sizes.own_statistics)
            values = matrix(data.made, columns)
            boosters = forests.fit(
                work / name,
                values[week3],
                columns,
                data.targets[week3],
                trees=trees,
                labels=labels,
                parts=parts,
                parameters={
                    "max_depth": sizes.depth,
                    "eta": sizes.learning_rate,
                    "min_child_weight": sizes.min_child_weight,
                    "colsample_bytree": share,
                },
                seed=sizes.seed,
                threads=sizes.forest_threads,
                step=step,
            )
            groups = group[week4] if name == "xgb3" else None
            answers[name] = kept_array(
                work / f"{name}.npy",
                lambda boosters=boosters, values=values, groups=groups: forests.predict(
                    boosters, values[week4], groups
                ),
            )
    return answers


def _train_stage2(
    sizes: Sizes, work: Path, data: Data, answers: Mapping[str, NDArray[np.float32]], task: Task
) -> dict[str, NDArray[np.float32]]:
    """Answers of xgb4, xgb5 and the stack for week 4, [rows, 4] each."""
    from examples.recsys2021 import forests
    from examples.recsys2021.features import matrix

    week4 = data.week == 3
    learn = data.validation[week4]
    plans = {
        "xgb4": (STAGE1, sizes.xgb4_trees, sizes.xgb4_bags, 0.4),
        "xgb5": (tuple(model for model in STAGE1 if model != "xgb3"), sizes.xgb5_trees, sizes.xgb5_bags, 0.3),
    }
    final = {}
    for name, (models, trees, bags, share) in plans.items():
        with task(name, 4 * bags) as step:
            columns = forests.columns_of(name, list(data.made.columns), sizes.own_statistics)
            values = np.hstack([matrix(data.made[week4], columns), *(answers[model] for model in models)])
            columns += [f"{model}.{target}" for model in models for target in TARGETS]
            boosters = forests.fit(
                work / name,
                values[learn],
                columns,
                data.targets[week4][learn],
                trees=trees,
                labels=[f"-{bag}" for bag in range(bags)],
                parts=[np.ones(int(learn.sum()), bool)] * bags,
                parameters={
                    "max_depth": sizes.stage2_depth,
                    "eta": sizes.stage2_learning_rate,
                    "min_child_weight": sizes.min_child_weight,
                    "colsample_bytree": share,
                },
                seed=sizes.seed,
                threads=2,
                step=step,
            )
            final[name] = kept_array(
                work / f"{name}.npy", lambda boosters=boosters, values=values: forests.predict(boosters, values)
            )
    final["stack"] = (final["xgb4"] + final["xgb5"]) / np.float32(2)
    return final


def _send_nets_off(nets: NetsProcess, sizes: Sizes, data: Data) -> None:
    """NN2 reads target encodings, so it must not learn from the weeks they were made of."""
    newest = {
        "nn2": np.flatnonzero(data.week == 2)[-sizes.nn2_rows :],
        "nn3": np.flatnonzero(data.week < 3)[-sizes.nn3_rows :],
    }
    for step in nets.lacking():
        learn = newest[step]
        inputs = net_inputs(step, data.made, sizes)
        nets.give(step, inputs, learn, np.flatnonzero(data.week == 3), data.targets[learn])
    nets.start(data.cardinalities, expand(reads(sizes, "nn2")["categories"], list(data.made.columns)))


def _fingerprint(sizes: Sizes) -> str:
    """Changes when the sizes or the source that trains change."""
    digest = hashlib.sha256(repr(sizes).encode())
    for file in [*(PACKAGE / f"{module}.py" for module in MODULES), stack_file(sizes)]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


@contextlib.contextmanager
def _task(bars: Progress, what: str, steps: int) -> Iterator[Callable[[], None]]:
    """A bar; yields the function that moves it on, and ends full."""
    task = bars.add_task(what, total=steps)
    yield lambda: bars.advance(task)
    bars.update(task, completed=steps)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TensorFlow and Merlin greet and warn on stderr, from C++ too; nothing of it is for the reader."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def scores_table(scores: Scores) -> Table:
    """Average precision and relative cross entropy of every model, for the terminal."""
    table = Table(title="held-out rows, averaged over the five author groups")
    for heading in ("model", "AP", "RCE", *(f"RCE {target}" for target in TARGETS)):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model, metrics in scores.items():
        rce = [f"{metrics['rce'][name]:.2f}" for name in ("average", *TARGETS)]
        table.add_row(model, f"{metrics['ap']['average']:.4f}", *rce, style="bold" if model == "stack" else None)
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.recsys2021.train", description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("-o", "--output", type=Path, help="folder of the artifacts (default: beside the example)")
    parser.add_argument("--retrain", action="store_true", help="train even if the folder holds these artifacts")
    given = parser.parse_args()
    start = time.perf_counter()
    trained = train(SIZES[given.size], given.output, retrain=given.retrain)
    out.print(scores_table(trained.scores))
    how = "found trained" if trained.reused else f"trained in {time.perf_counter() - start:.0f} s"
    console.print(f"{how}: {trained.folder / 'stack.yaml'}")


if __name__ == "__main__":
    main()
