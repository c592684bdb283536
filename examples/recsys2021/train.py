"""Trains the whole stack: `python -m examples.recsys2021.train --size small -o FOLDER`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.progress import Progress
from rich.table import Table

from examples.recsys2021 import TARGETS
from examples.recsys2021.metrics import grouped_scores
from examples.recsys2021.nets_process import NetsProcess
from examples.recsys2021.rows import Rows, make_rows
from examples.recsys2021.sizes import SIZES, SMALL, Sizes
from examples.recsys2021.wiring import STACK, expand, net_inputs, reads
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
    "metrics",
    "nets",
    "nets_process",
    "nn1",
    "nn2",
    "nn3",
    "operators",
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

    Args:
        sizes: how large everything is.
        folder: where the artifacts go; `artifacts/<size>` beside this file when None. What was there is replaced, once
            the training is through.
        retrain: train even if the folder holds what these sizes and this source make.

    Raises:
        ArtifactError: the process that trains NN2 and NN3 failed.
    """
    folder = ARTIFACTS / sizes.name if folder is None else Path(folder)
    mark = _fingerprint(sizes)
    kept = folder / FINGERPRINT
    if not retrain and kept.is_file() and kept.read_text() == mark:
        return Trained(folder, json.loads((folder / "scores.json").read_text()), True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with progress() as bars:
            scores = _train(sizes, aside, bars)
        (aside / FINGERPRINT).write_text(mark)
        aside.chmod(0o755)
        replaced = aside.with_name(aside.name + "-replaced")
        if folder.exists():
            folder.rename(replaced)
        aside.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Trained(folder, scores, False)


def _train(sizes: Sizes, folder: Path, bars: Progress) -> Scores:
    with NetsProcess(sizes, bars) as nets:
        with _task(bars, "loading NVTabular, TensorFlow and XGBoost", 1), _quiet_import():
            import nvtabular  # noqa: F401

            from examples.recsys2021 import features, nn1
        with _task(bars, f"drawing {4 * sizes.rows_per_week:,} rows", 1):
            rows = make_rows(sizes)
            frame = rows.table.to_pandas()
        with _task(bars, "preprocessing: NVTabular", 2) as step:
            workflow = features.fit_workflow(frame[rows.week < 2].reset_index(drop=True), sizes, folder / "workflow")
            step()
            made = features.transform(workflow, frame)
        targets = frame[list(TARGETS)].to_numpy()
        cardinalities = _cardinalities(made, sizes)
        _send_nets_off(nets, sizes, made, targets, rows, cardinalities)
        answers = {"nn1": _train_nn1(sizes, folder, made, targets, rows, cardinalities, bars, nn1)}
        answers.update(_train_stage1_forests(sizes, folder, made, targets, rows, bars))
        answers.update(nets.answers(folder))
    final = _train_stage2(sizes, folder, made, targets, rows, answers, bars)

    with _task(bars, "scoring and writing", 1):
        test = rows.test[rows.week == 3]
        group = made["author_group"].to_numpy()[rows.test]
        every = {name: answers[name][test] for name in STAGE1} | {name: value[test] for name, value in final.items()}
        scores = {name: grouped_scores(targets[rows.test], value, group) for name, value in every.items()}
        (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
        shutil.copy(STACK, folder / "stack.yaml")
        _write_rows(rows, sizes, folder)
    return scores


def _cardinalities(made: pd.DataFrame, sizes: Sizes) -> dict[str, int]:
    """Rows of each embedding table: codes 0 pad, 1 null, 2 unknown, then what the earlier weeks hold."""
    counts = {
        name: max(int(made[name].max()) + 1, 3) for name in expand(reads("nn2")["categories"], list(made.columns))
    }
    counts["users"] = max(int(made["a_user"].max()), int(made["b_user"].max())) + 1
    counts["hashtags"] = sizes.hashtags + 3
    return counts


def _train_nn1(
    sizes: Sizes,
    folder: Path,
    made: pd.DataFrame,
    targets: NDArray[Any],
    rows: Rows,
    cardinalities: Mapping[str, int],
    bars: Progress,
    nn1: Any,
) -> NDArray[np.float32]:
    inputs = net_inputs("nn1", made, sizes)
    past, week4 = rows.week < 3, rows.week == 3
    answers = []
    batches = sizes.nn1_nets * sizes.nn1_epochs * -(-int(past.sum()) // sizes.nn1_batch)
    with _task(bars, "nn1 (Keras)", batches) as step:
        for index in range(sizes.nn1_nets):
            learn = {name: values[past] for name, values in inputs.items()}
            net = nn1.fit(sizes, sizes.seed + index, learn, targets[past], cardinalities, step)
            net.save(folder / ("nn1.keras" if sizes.nn1_nets == 1 else f"nn1-{index}.keras"))
            answer = {name: values[week4] for name, values in inputs.items()}
            answers.append(net.predict(answer, batch_size=2048, verbose=0))
    return np.asarray(np.mean(answers, axis=0), np.float32)


def _train_stage1_forests(
    sizes: Sizes, folder: Path, made: pd.DataFrame, targets: NDArray[Any], rows: Rows, bars: Progress
) -> dict[str, NDArray[np.float32]]:
    from examples.recsys2021 import forests

    week3, week4 = rows.week == 2, rows.week == 3
    group = made["author_group"].to_numpy()
    every = np.ones(int(week3.sum()), bool)
    half = np.random.default_rng(sizes.seed).random(len(every)) < 0.7
    plans = {
        "xgb1": (sizes.xgb1_trees, [f"-{bag}" for bag in range(sizes.xgb1_bags)], [every] * sizes.xgb1_bags, 0.5),
        "xgb2": (sizes.xgb2_trees, [""], [half], 0.3),
        "xgb3": (sizes.xgb3_trees, [f"-{at}" for at in range(5)], [group[week3] == at for at in range(5)], 0.5),
    }
    answers = {}
    for name, (trees, labels, parts, share) in plans.items():
        with _task(bars, name, 4 * len(labels)) as step:
            columns = forests.columns_of(name, list(made.columns))
            values = _matrix(made, columns)
            boosters = forests.fit(
                folder / name,
                values[week3],
                columns,
                targets[week3],
                trees=trees,
                labels=labels,
                parts=parts,
                parameters={"max_depth": sizes.depth, "eta": sizes.learning_rate, "colsample_bytree": share},
                seed=sizes.seed,
                threads=1,
                step=step,
            )
            answers[name] = forests.predict(boosters, values[week4], group[week4] if name == "xgb3" else None)
    return answers


def _train_stage2(
    sizes: Sizes,
    folder: Path,
    made: pd.DataFrame,
    targets: NDArray[Any],
    rows: Rows,
    answers: Mapping[str, NDArray[np.float32]],
    bars: Progress,
) -> dict[str, NDArray[np.float32]]:
    """Answers of xgb4, xgb5 and the stack for week 4, [rows, 4] each."""
    from examples.recsys2021 import forests

    week4 = rows.week == 3
    learn = rows.validation[week4]
    plans = {
        "xgb4": (STAGE1, sizes.xgb4_trees, sizes.xgb4_bags, 0.4),
        "xgb5": (tuple(model for model in STAGE1 if model != "xgb3"), sizes.xgb5_trees, sizes.xgb5_bags, 0.3),
    }
    final = {}
    for name, (models, trees, bags, share) in plans.items():
        with _task(bars, name, 4 * bags) as step:
            columns = forests.columns_of(name, list(made.columns))
            values = np.hstack([_matrix(made[week4], columns), *(answers[model] for model in models)])
            columns += [f"{model}.{target}" for model in models for target in TARGETS]
            boosters = forests.fit(
                folder / name,
                values[learn],
                columns,
                targets[week4][learn],
                trees=trees,
                labels=[f"-{bag}" for bag in range(bags)],
                parts=[np.ones(int(learn.sum()), bool)] * bags,
                parameters={
                    "max_depth": sizes.stage2_depth,
                    "eta": sizes.stage2_learning_rate,
                    "colsample_bytree": share,
                },
                seed=sizes.seed,
                threads=2,
                step=step,
            )
            final[name] = forests.predict(boosters, values)
    final["stack"] = (final["xgb4"] + final["xgb5"]) / np.float32(2)
    return final


def _send_nets_off(
    nets: NetsProcess,
    sizes: Sizes,
    made: pd.DataFrame,
    targets: NDArray[Any],
    rows: Rows,
    cardinalities: Mapping[str, int],
) -> None:
    """NN2 reads target encodings, so it must not learn from the weeks they were made of."""
    newest = {
        "nn2": np.flatnonzero(rows.week == 2)[-sizes.nn2_rows :],
        "nn3": np.flatnonzero(rows.week < 3)[-sizes.nn3_rows :],
    }
    for step, learn in newest.items():
        inputs = net_inputs(step, made, sizes)
        nets.give(step, inputs, learn, np.flatnonzero(rows.week == 3), targets[learn])
    nets.start(cardinalities, expand(reads("nn2")["categories"], list(made.columns)))


def _matrix(made: pd.DataFrame, columns: list[str]) -> NDArray[np.float32]:
    from examples.recsys2021.features import matrix

    return np.asarray(matrix(made, columns), np.float32)


def _write_rows(rows: Rows, sizes: Sizes, folder: Path) -> None:
    """The test rows as they came, and those of them that parity is proved on."""
    test = rows.table.filter(rows.test)
    pq.write_table(test, folder / "test_rows.parquet")
    picked = np.random.default_rng(sizes.seed + 7).choice(len(test), sizes.golden_rows, replace=False)
    pq.write_table(test.take(np.sort(picked)), folder / "golden_rows.parquet")


def _fingerprint(sizes: Sizes) -> str:
    """Changes when the sizes or the source that trains change."""
    digest = hashlib.sha256(repr(sizes).encode())
    for file in [*(PACKAGE / f"{module}.py" for module in MODULES), STACK]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


@contextlib.contextmanager
def _task(bars: Progress, what: str, steps: int) -> Iterator[Callable[[], None]]:
    """A bar; yields the function that moves it on, and ends full."""
    task = bars.add_task(what, total=steps)
    yield lambda: bars.advance(task)
    bars.update(task, completed=steps)


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """TensorFlow and Merlin greet on stderr, from C++ too; nothing of it is for the reader."""
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
