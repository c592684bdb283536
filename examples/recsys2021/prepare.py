"""Rows drawn, workflows fitted, features made: what the models of the stack learn from, each kept as it is done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
from numpy.typing import NDArray

from examples.recsys2021 import TARGETS
from examples.recsys2021.kept import aside
from examples.recsys2021.rows import Rows, make_rows
from examples.recsys2021.sizes import Sizes
from examples.recsys2021.wiring import expand, reads

__all__ = ["Data", "Task", "prepare", "write_rows"]

Task = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Shows that something of so many steps is done; yields what moves it a step on."""

EVERY_WEEK = {"past": (0, 1), "newer": (1, 2)}


@dataclass(frozen=True)
class Data:
    """The newest rows, as many as models learn from and are tested on, in the order of time.

    Attributes:
        made: what the workflows make of them, [rows].
        targets: [rows, 4], 0 or 1.
        week: [rows], 0 to 3.
        validation, test: [rows]: the parts of week 3 (the fourth) that stage 2 learns from, and the rest of it.
        cardinalities: rows of each embedding table: by category, and of the users by net.
    """

    made: pd.DataFrame
    targets: NDArray[Any]
    week: NDArray[np.int64]
    validation: NDArray[np.bool_]
    test: NDArray[np.bool_]
    cardinalities: dict[str, int]


def prepare(sizes: Sizes, folder: Path, task: Task) -> Data:
    """Draw the rows, fit the workflows and have them transform the rows that models need.

    Args:
        sizes: how large everything is.
        folder: takes the workflows, and `rows.arrow` and `made.arrow`; what is there is not made again.
        task: shows what is done.
    """
    rows = _rows(sizes, folder / "rows.arrow", task)
    fits = _fits(sizes)
    frame: list[pd.DataFrame] = []  # strings of a million rows: made once, and only where something is left to fit

    def some(chosen: NDArray[np.bool_]) -> pd.DataFrame:
        if not frame:
            frame.append(rows.table.to_pandas())
        return frame[0][chosen].reset_index(drop=True)

    with task("preprocessing: NVTabular", 2 * len(fits)) as step:
        for name, (fit, weeks) in fits.items():
            if not (folder / name).is_dir():
                with aside(folder / name) as part:
                    fit(some(np.isin(rows.week, weeks)), part)
            step()
        first = _first_row(sizes, rows)
        made = folder / "made.arrow"
        if not made.is_file():
            newest = some(np.arange(len(rows.week)) >= first)
            frame.clear()
            columns = [_transform(folder / name, newest, step) for name in fits]
            with aside(made) as part:
                feather.write_feather(pd.concat(columns, axis=1), str(part), compression="lz4")
    features = feather.read_feather(str(made))
    return Data(
        features,
        np.stack([rows.table[name].to_numpy()[first:] for name in TARGETS], axis=1),
        rows.week[first:],
        rows.validation[first:],
        rows.test[first:],
        _cardinalities(features, sizes, [folder / name for name in fits]),
    )


def write_rows(sizes: Sizes, folder: Path) -> None:
    """Write the test rows as they came, and those of them that parity is proved on."""
    rows = _read_rows(folder / "rows.arrow")
    test = rows.table.filter(rows.test)
    pq.write_table(test, folder / "test_rows.parquet")
    picked = np.random.default_rng(sizes.seed + 7).choice(len(test), sizes.golden_rows, replace=False)
    pq.write_table(test.take(np.sort(picked)), folder / "golden_rows.parquet")


def _rows(sizes: Sizes, file: Path, task: Task) -> Rows:
    with task(f"drawing {4 * sizes.rows_per_week + sizes.known_users:,} rows", 1):
        if not file.is_file():
            rows = make_rows(sizes)
            table = rows.table
            for name in ("week", "validation", "test"):
                table = table.append_column(f"__{name}", pa.array(getattr(rows, name)))
            with aside(file) as part:
                feather.write_feather(table, str(part), compression="lz4")
        return _read_rows(file)


def _read_rows(file: Path) -> Rows:
    table = feather.read_table(str(file))
    marks = [np.asarray(table[name]) for name in ("__week", "__validation", "__test")]
    return Rows(table.drop_columns(["__week", "__validation", "__test"]), *marks)


def _fits(sizes: Sizes) -> dict[str, tuple[Callable[[pd.DataFrame, Path], Any], tuple[int, int]]]:
    """Folder of each workflow -> what fits it, and the weeks it is fitted on."""
    from examples.recsys2021 import features, keyed

    fits = {"workflow": (lambda rows, folder: features.fit_workflow(rows, sizes, folder), (0, 1))}
    if sizes.own_statistics:
        fits |= {keyed.PAST: (keyed.fit_past, (0, 1)), keyed.NEWER: (keyed.fit_newer, (1, 2))}
    return fits


def _first_row(sizes: Sizes, rows: Rows) -> int:
    """The first row that a model needs: weeks 3 and 4, and what nets read of the weeks before."""
    third, fourth = np.searchsorted(rows.week, (2, 3))
    return max(0, min(int(third), int(fourth) - max(sizes.nn1_rows, sizes.nn3_rows)))


def _transform(folder: Path, rows: pd.DataFrame, step: Callable[[], None]) -> pd.DataFrame:
    from examples.recsys2021 import features

    made = features.transform(features.load_workflow(folder), rows)
    step()
    return made


def _cardinalities(made: pd.DataFrame, sizes: Sizes, workflows: list[Path]) -> dict[str, int]:
    """Rows of each embedding table: codes 0 pad, 1 null, 2 unknown, then what the earlier weeks hold."""
    from examples.recsys2021.features import load_workflow

    schema = {column.name: column for folder in workflows for column in load_workflow(folder).output_schema}

    def rows_of(name: str) -> int:
        fitted = schema[name].properties.get("embedding_sizes", {}).get("cardinality")
        return int(fitted or max(int(made[name].max()) + 1, 3))

    counts = {name: rows_of(name) for name in expand(reads(sizes, "nn2")["categories"], list(made.columns))}
    users = {"nn1": "a_user", "nn2": "b_user", "nn3": "a_user"}
    for net, name in users.items():
        counts[net] = rows_of(expand(reads(sizes, net)[name], list(made.columns))[0])
    counts["hashtags"] = sizes.hashtags + 3
    return counts
