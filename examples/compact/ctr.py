"""What the systems that predict a click share: their workflow, their inputs, their golden rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from examples.compact.features import columns, fit_workflow, padded, sizes_of, transform
from examples.compact.rows import NUMBERS, awkward_clicks, clicks
from examples.compact.system import Trained
from tristage.stack import ListInput, NetStep, Stack, WorkflowStep

__all__ = ["CODES", "Clicks", "prepare"]

CODES = ("user", "item", "device")
_GOLDEN = 400


@dataclass(frozen=True)
class Clicks:
    """Rows and what the workflow made of them.

    Attributes:
        workflow: fitted.
        codes: columns of codes, in order; the last may be of two columns together.
        tables: rows of the embedding table of each of them, and of genres where there are any.
        inputs: what a net can read, of the rows to learn from: codes [rows, codes] and genres [rows, hot] int64 (where
            there are any), numbers [rows, 2] float32.
        clicked: 0 or 1, [rows, 1].
        golden: file of rows that are not learned from.
        awkward: see `Trained`.
        hot: genres that a row has at most; 0 for none.
    """

    workflow: Any
    codes: tuple[str, ...]
    tables: tuple[int, ...]
    inputs: Mapping[str, NDArray[Any]]
    clicked: NDArray[Any]
    golden: Path
    awkward: pd.DataFrame
    hot: int

    def read(self, rows: pd.DataFrame) -> dict[str, NDArray[Any]]:
        """What a net reads of raw rows."""
        return _inputs(transform(self.workflow, rows), self.codes, self.hot)

    def trained(
        self, name: str, net: Any, reads: tuple[str, ...], ask: Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]
    ) -> Trained:
        """The stack of the workflow and one net that answers `click`.

        Args:
            name: the stack's.
            net: torch's, with example rows, or Keras's.
            reads: which of the inputs it has.
            ask: inputs -> the net's own answers, [rows] or [rows, 1].
        """
        sources = {
            "codes": tuple(f"features.{code}" for code in self.codes),
            "genres": ("features.genres",),
            "numbers": tuple(f"features.{n}" for n in NUMBERS),
        }
        examples = None
        if type(net).__module__.split(".")[0] != "keras":
            examples = {one: self.inputs[one][:2] for one in reads}
        stack = Stack(
            name=name,
            targets=("click",),
            steps={
                "features": WorkflowStep(self.workflow),
                "net": NetStep(net, {one: sources[one] for one in reads}, examples=examples),
            },
            outputs={"click": "net.click"},
            inputs={"genres": ListInput(self.hot)} if self.hot else {},
            golden=self.golden,
        )

        def answer(rows: pd.DataFrame) -> dict[str, NDArray[Any]]:
            made = self.read(rows)
            return {"click": ask({one: made[one] for one in reads}).reshape(len(rows))}

        return Trained(stack, self.awkward, answer)


def prepare(
    sizes: Any, folder: Path, codes: tuple[str, ...] = CODES, crosses: tuple[tuple[str, str], ...] = ()
) -> Clicks:
    """Draw rows, fit the workflow, and set golden rows aside.

    Args:
        sizes: has users, items, hot, rows, seed; without genres where hot is 0.
        folder: takes the golden rows and the workflow's categories.
        codes: columns that have codes.
        crosses: pairs of columns that have codes together, after those.
    """
    from nvtabular import ops

    drawn = clicks(sizes.rows + _GOLDEN, sizes.users, sizes.items, sizes.hot, sizes.seed)
    learn, held = drawn.iloc[: sizes.rows], drawn.iloc[sizes.rows :]
    where = str(folder / "categories")
    encode = ops.Categorify(encode_type="combo" if crosses else "joint", out_path=where)
    lists = ["genres"] if sizes.hot else []
    graph = [*map(list, crosses), *codes, *lists] >> encode
    graph = graph + (list(NUMBERS) >> ops.FillMissing(fill_val=0) >> ops.Normalize())
    workflow = fit_workflow(graph, learn.drop(columns="click"), folder)
    features = transform(workflow, learn.drop(columns="click"))
    codes = (*codes, *("_".join(pair) for pair in crosses))
    golden = folder / "golden.parquet"
    held.drop(columns="click").to_parquet(golden)
    return Clicks(
        workflow,
        codes,
        tuple(sizes_of(features, (*codes, *lists))),
        _inputs(features, codes, sizes.hot),
        learn["click"].to_numpy()[:, None],
        golden,
        awkward_clicks(held.drop(columns="click"), sizes.hot),
        sizes.hot,
    )


def _inputs(features: pd.DataFrame, codes: tuple[str, ...], hot: int) -> dict[str, NDArray[Any]]:
    made = {"codes": columns(features, codes, "int64"), "numbers": columns(features, NUMBERS, "float32")}
    return made | ({"genres": padded(features["genres"], hot)} if hot else {})
