"""Writes forests, rows and the training library's answers for replay.c: `python tests/sanitize/cases.py FOLDER`."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import treelite
import xgboost
from numpy.typing import NDArray

from tristage.export.forest.to_engine import Member, pack

WIDTH = 9
ROWS = 300


def rows_of(count: int, seed: int) -> NDArray[np.float32]:
    """Random rows with missing, infinite and extreme values."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, WIDTH)).astype(np.float32)
    strange = rng.random(rows.shape) < 0.15
    rows[strange] = rng.choice(np.array([np.nan, 0, -0.0, 3e38, -3e38, 1e-45], np.float32), strange.sum())
    return rows


def train(seed: int, rounds: int, **options: object) -> xgboost.Booster:
    """A booster over random labels."""
    labels = np.random.default_rng(seed).integers(3 if "num_class" in options else 2, size=600)
    options = {"objective": "binary:logistic", "nthread": 1, "min_child_weight": 0, "seed": seed, **options}
    return xgboost.train(options, xgboost.DMatrix(rows_of(600, seed), labels), rounds)


def member(booster: xgboost.Booster, output: int = 0, group: int = 0) -> Member:
    """The booster as a member of a packed forest."""
    return Member(treelite.frontend.from_xgboost(booster), output, 1.0, group)


def write(path: Path, members: list[Member], answers: NDArray[np.float32], groups: NDArray[np.int64] | None) -> None:
    """One case: sizes, packed forest, rows, answers, groups."""
    packed, rows = pack(members, WIDTH), rows_of(ROWS, 0)
    rows[::17, 0], rows[::19, 1] = np.inf, -np.inf
    head = struct.pack("<5Q", len(packed), ROWS, WIDTH, answers.shape[1], groups is not None)
    tail = b"" if groups is None else groups.tobytes()
    path.write_bytes(head + packed + rows.tobytes() + np.ascontiguousarray(answers, np.float32).tobytes() + tail)


def main(folder: Path) -> None:
    """Write every case."""
    rows = rows_of(ROWS, 0)
    rows[::17, 0], rows[::19, 1] = np.inf, -np.inf

    def answer(booster: xgboost.Booster) -> NDArray[np.float32]:
        return booster.inplace_predict(rows).reshape(ROWS, -1)

    for depth in range(1, 13):
        booster = train(depth, 37, max_depth=depth)
        write(folder / f"depth{depth}.case", [member(booster)], answer(booster), None)
    classes = train(20, 9, objective="multi:softprob", num_class=3, max_depth=5)
    nothing = train(21, 0, base_score=0.3)
    deep = train(22, 11, max_depth=10)
    several = [member(classes), member(nothing, 3), member(deep, 4)]
    write(folder / "several.case", several, np.hstack([answer(b) for b in (classes, nothing, deep)]), None)
    groups = np.random.default_rng(0).integers(-1, 4, ROWS)
    boosters = [train(30 + group, 10, max_depth=2 + 3 * group) for group in range(3)]
    answers = np.full((ROWS, 1), np.nan, np.float32)
    for group, booster in enumerate(boosters):
        answers[groups == group] = answer(booster)[groups == group]
    write(folder / "groups.case", [member(b, 0, group) for group, b in enumerate(boosters)], answers, groups)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
