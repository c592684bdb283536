"""Trains MicroParade, with a head for all targets or one for each, and says how it is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from examples.compact.learn import fit
from examples.compact.system import System, Trained
from examples.microparade import TARGETS
from examples.microparade.data import Data, inputs, prepare, reads
from examples.microparade.net import MicroParade
from examples.microparade.sizes import SIZES, Sizes
from examples.recsys2021.metrics import average_precision
from tristage.stack import ListInput, NetStep, Stack, WorkflowStep

__all__ = ["SYSTEMS", "ask", "stack", "train"]

_ROWS = 64  # that a net is asked about at once


def train(sizes: Sizes, folder: Path) -> Trained:
    """Train it; see `examples.compact.system.System.train`."""
    torch.manual_seed(sizes.seed)
    data = prepare(sizes, folder)
    net = MicroParade(sizes)
    loss = nn.functional.binary_cross_entropy_with_logits
    fit(net, data.inputs, data.engaged, loss, sizes.epochs, sizes.batch, sizes.rate)

    def answer(rows: pd.DataFrame) -> Mapping[str, NDArray[Any]]:
        made = ask(net, data.read(rows))
        return {target: made[:, at] for at, target in enumerate(TARGETS)}

    held = answer(data.held)
    scores = {target: average_precision(data.held[target].to_numpy(), held[target]) for target in TARGETS}
    made = stack("microparade", data, net, data.inputs, reads(sizes))
    return Trained(made, data.awkward, answer, max_batch=sizes.max_batch, scores=scores)


def stack(
    name: str,
    data: Data,
    net: nn.Module,
    read: Mapping[str, NDArray[Any]],
    columns: Mapping[str, tuple[str, ...]],
    more: Mapping[str, ListInput] = MappingProxyType({}),
) -> Stack:
    """The stack of the workflow and a net.

    Args:
        name: the stack's.
        data: has the workflow and the golden rows.
        net: answers [rows, 4].
        read: some rows of every input of the net.
        columns: input -> the columns that it is.
        more: list columns beside those that MicroParade reads.
    """
    named = {column for its in columns.values() for column in its}
    return Stack(
        name=name,
        targets=TARGETS,
        steps={
            "features": WorkflowStep(data.workflow),
            "net": NetStep(net, columns, examples={one: read[one][:2] for one in columns}),
        },
        outputs={target: f"net.{target}" for target in TARGETS},
        inputs={column: its for column, its in {**inputs(data.sizes), **more}.items() if column in named},
        golden=data.golden,
    )


def ask(net: nn.Module, read: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """What the net answers, [rows, 4]."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(read["numbers"]), _ROWS):
            some = {name: torch.from_numpy(values[start : start + _ROWS]) for name, values in read.items()}
            parts.append(net.eval()(**some).numpy())
    return np.concatenate(parts)


def _system(name: str, title: str, each: bool) -> System:
    return System(
        name,
        title,
        "MicroParade",
        "a cross-encoding BERT, a masked transformer over its vectors, integer lists, target encoding of five folds",
        {size: replace(its, each=each) for size, its in SIZES.items()},
        train,
    )


SYSTEMS = {
    system.name: system
    for system in (
        _system("single", "MicroParade, single", False),
        _system("multi", "MicroParade, multi", True),
    )
}
