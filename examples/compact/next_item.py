"""What the systems that name the next items share: their workflow, histories as codes, codes back to items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from examples.compact.features import fit_workflow, padded, transform
from examples.compact.learn import ask
from examples.compact.rows import FIRST_ITEM, awkward_histories, histories
from examples.compact.system import Trained
from tristage.stack import ListInput, NetStep, Stack, WorkflowStep

__all__ = ["FIRST", "Histories", "NextItem", "prepare"]

FIRST = 3  # the first item's code: NVTabular keeps 0 for padding, 1 for null and 2 for unseen
_GOLDEN = 400
_NO_ITEM = -(2**63)  # fills a request's list up: any other number may be asked about


@dataclass(frozen=True)
class Histories:
    """Rows and what the workflow made of them.

    Attributes:
        workflow: fitted.
        items: the item of every code, [codes] int64; -1 of codes that are no item.
        inputs: histories to learn from, as codes, [rows, length] int64, 0 where there is none.
        following: the code of the item that came next, [rows].
        golden: file of rows that are not learned from.
        awkward: see `Trained`.
        length: codes that a net reads.
        room: items that a request may hold; a workflow that reads fewer takes the last.
    """

    workflow: Any
    items: NDArray[np.int64]
    inputs: NDArray[np.int64]
    following: NDArray[np.int64]
    golden: Path
    awkward: pd.DataFrame
    length: int
    room: int

    def read(self, rows: pd.DataFrame) -> NDArray[np.int64]:
        """What a net reads of raw rows."""
        kept = pd.DataFrame({"items": [np.asarray(items)[: self.room] for items in rows["items"]]})
        return padded(transform(self.workflow, kept)["items"], self.length)

    def trained(self, name: str, net: nn.Module) -> Trained:
        """The stack of the workflow and a net that answers `item` and `score`, [rows, top] each."""
        stack = Stack(
            name=name,
            steps={
                "features": WorkflowStep(self.workflow),
                "net": NetStep(net, {"items": "features.items"}, examples={"items": self.inputs[:2]}),
            },
            outputs={"next": "net.item*", "scores": "net.score*"},
            inputs={"items": ListInput(self.room, pad=_NO_ITEM)},
            golden=self.golden,
        )

        def answer(rows: pd.DataFrame) -> Mapping[str, NDArray[Any]]:
            made = ask(net, {"items": self.read(rows)})
            return {"next": made["item"], "scores": made["score"]}

        return Trained(stack, self.awkward, answer)


class NextItem(nn.Module, ABC):
    """Names the items of the highest scores; a model says what the scores are.

    Attributes:
        items: the item of every code, [codes] int64.
        top: how many are named.
    """

    def __init__(self, items: NDArray[np.int64], top: int) -> None:
        super().__init__()
        self.register_buffer("items", torch.from_numpy(items))
        self.top = top

    @abstractmethod
    def scores(self, items: Any) -> Any:
        """The logit of every code but the first three, [rows, codes - 3]."""

    def forward(self, items: Any) -> Any:
        """The likeliest next items, and how likely they are: item [rows, top] int64, score [rows, top]."""
        likely, at = torch.softmax(self.scores(items), 1).topk(self.top, dim=1)
        return {"item": self.items[at + FIRST], "score": likely}


def prepare(sizes: Any, folder: Path, *, room: int, cut: bool = False) -> Histories:
    """Draw histories, fit the workflow, and set golden rows aside.

    Args:
        sizes: has items, length, rows, seed.
        folder: takes the golden rows and the workflow's categories.
        room: items that a request may hold.
        cut: whether the workflow takes the last `length` of them.
    """
    from nvtabular import ops

    drawn = histories(sizes.rows + _GOLDEN, sizes.items, sizes.length, sizes.seed)
    learn, held = drawn.iloc[: sizes.rows], drawn.iloc[sizes.rows :]
    graph = ["items"] >> ops.Categorify(out_path=str(folder / "categories"))
    if cut:
        graph = graph >> ops.ListSlice(-sizes.length)
    workflow = fit_workflow(graph, learn[["items"]], folder)

    def codes_of(items: NDArray[np.int64]) -> NDArray[np.int64]:
        return padded(transform(workflow, pd.DataFrame({"items": list(items[:, None])}))["items"], 1)[:, 0]

    every = FIRST_ITEM + np.arange(sizes.items)
    codes = codes_of(every)
    items = np.full(codes.max() + 1, -1, np.int64)
    items[codes] = every
    golden = folder / "golden.parquet"
    held[["items"]].to_parquet(golden)
    return Histories(
        workflow,
        items,
        padded(transform(workflow, learn[["items"]])["items"], sizes.length),
        codes_of(learn["next"].to_numpy()),
        golden,
        awkward_histories(held, sizes.items, sizes.length),
        sizes.length,
        room,
    )
