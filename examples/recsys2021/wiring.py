"""What the stack's file says each net reads, made into arrays: training and serving cannot disagree about it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from numpy.typing import NDArray

from examples.recsys2021.features import matrix, padded
from examples.recsys2021.sizes import Sizes

__all__ = ["expand", "net_inputs", "reads", "stack_file"]

INTEGERS = "categories"  # the one input that is a list of columns and whole numbers


def stack_file(sizes: Sizes) -> Path:
    """The stack's declaration: one workflow for all models, or one with statistics of each family's own."""
    return Path(__file__).with_name("stack_paper.yaml" if sizes.own_statistics else "stack.yaml")


@cache
def _stack(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def reads(sizes: Sizes, net: str) -> dict[str, str | list[str]]:
    """The inputs of a net as the stack's file writes them: input name -> column, glob or list of them."""
    steps = _stack(stack_file(sizes))["steps"]
    step = steps[net]
    return dict(steps[step["mean"][0]]["reads"] if "mean" in step else step["reads"])


def expand(patterns: str | Sequence[str], columns: Sequence[str]) -> list[str]:
    """Columns of the workflows that `<step>.<glob>` names, pattern by pattern, each in the workflows' order."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return [column for pattern in patterns for column in columns if fnmatchcase(column, pattern.partition(".")[2])]


def net_inputs(step: str, features: pd.DataFrame, sizes: Sizes) -> dict[str, NDArray[Any]]:
    """The arrays a net reads: lists [rows, length] int64, one column [rows] int64, several columns [rows, columns]."""
    lengths = {"text_tokens": sizes.tokens, "hashtags": sizes.list_hashtags}
    made: dict[str, NDArray[Any]] = {}
    for name, patterns in reads(sizes, step).items():
        columns = expand(patterns, list(features.columns))
        if columns[0] in lengths:
            made[name] = padded(features[columns[0]], lengths[columns[0]])
        elif len(columns) == 1:
            made[name] = features[columns[0]].to_numpy("int64")
        else:
            made[name] = matrix(features, columns, "int64" if name == INTEGERS else "float32")
    return made
