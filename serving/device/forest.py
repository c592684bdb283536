"""A packed forest that a device answers: ranks of a row's values, walks through complete trees, sums in float64.

serving/forest/packed.h says how the file is laid out, and why a node is a column and a rank.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tristage.serving.device.walk import Trees, walk
from tristage.serving.forest import ForestError
from tristage.serving.forest.packed import (
    FOREST,
    GROUP,
    HEADER,
    HEAP,
    LANES,
    LINE,
    NODE,
    ROOT,
    SEARCH,
    SLOT,
    UNIT,
)
from tristage.serving.packed_file import map_packed

__all__ = ["DeviceForest"]

_HIGHEST = 0x7FFF  # NaN's rank in a high column
_IDENTITY, _SIGMOID, _EXPONENTIAL, _SOFTMAX = range(4)


@dataclass(frozen=True)
class Searches:
    """How values become ranks.

    Attributes:
        feature: of each look-up, the column of a row that it reads.
        keys: its sorted keys, [look-ups, most keys], infinity after the last.
        count: how many they are.
        low: the column of ranks where NaN ranks lowest.
        high: the one where it ranks highest.
        columns: how many columns there are.
    """

    feature: torch.Tensor
    keys: torch.Tensor
    count: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    columns: int

    def ranks(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [n, features] -> ranks [columns, n], int16."""
        values = rows.T.index_select(0, self.feature).contiguous()
        rank = torch.searchsorted(self.keys, values, right=True).minimum(self.count[:, None])
        missing = torch.isnan(values)
        made = torch.zeros(self.columns, len(rows), dtype=torch.int16, device=rows.device)
        rank = rank.to(torch.int16)
        made[self.low] = torch.where(missing, 0, rank)
        made[self.high] = torch.where(missing, _HIGHEST, rank)  # a look-up without a side writes it to the last column
        return made


@dataclass(frozen=True)
class Finish:
    """How sums become answers, for forests of one margin each, and of several.

    Attributes:
        columns: of each forest's margin, the slot that it is.
        group: whose rows it answers.
        postprocessor: its number.
        alpha: what its margin is multiplied with before.
        weight: what its answer is multiplied with.
        outputs: for each column of an answer, which of the forests are added up.
    """

    columns: torch.Tensor
    group: torch.Tensor
    postprocessor: torch.Tensor
    alpha: torch.Tensor
    weight: torch.Tensor
    softmax: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]

    def answers(self, margins: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
        """Margins [slots, n] -> answers [n, outputs]."""
        x = margins.index_select(0, self.columns) * self.alpha[:, None]
        made = torch.where(self.postprocessor[:, None] == _SIGMOID, torch.sigmoid(x), x)
        made = torch.where(self.postprocessor[:, None] == _EXPONENTIAL, torch.exp(x), made)
        for columns in self.softmax:
            made = made.index_copy(0, columns, torch.softmax(x.index_select(0, columns), dim=0))
        made = made * self.weight[:, None]
        if groups is not None:
            made = torch.where(self.group[:, None] == groups[None, :], made, 0.0)
        return torch.stack([made.index_select(0, each).sum(0) for each in self.outputs], dim=1)


@dataclass(frozen=True)
class DeviceForest:
    """An opened forest.

    Attributes:
        features: columns of a row.
        outputs: columns of an answer.
        groups: how many groups of rows have forests of their own; 1 without groups.
        searches: how values become ranks.
        trees: what is walked.
        start: of each slot, what its leaves are added to.
        scale: what the sum is multiplied with.
        offset: what is added then.
        finish: how margins become answers.
    """

    features: int
    outputs: int
    groups: int
    searches: Searches
    trees: Trees
    start: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    finish: Finish

    @classmethod
    def open(cls, path: Path, device: torch.device) -> DeviceForest:
        """Open a file that `tristage.export.forest.to_engine` wrote.

        Raises:
            ForestError: it is missing, cut short or changed.
        """
        try:
            packed = map_packed(path, "packed forest")
            if packed[:8] != b"tristree":
                raise ValueError(f"{path} is no packed forest")
            _, features, columns, outputs, *counts = struct.unpack_from("<13Q", packed, 16)
        except (ValueError, struct.error) as error:
            raise ForestError(str(error)) from error
        names = ("groups", "searches", "slots", "forests", "keys", "uppers", "units", "nodes", "roots")
        many = dict(zip(names, counts, strict=True))
        sections: list[tuple[np.dtype[Any], str]] = [
            (GROUP, "groups"),
            (SEARCH, "searches"),
            (SLOT, "slots"),
            (FOREST, "forests"),
        ]
        sections += [(np.dtype("<f4"), "keys"), (HEAP, "uppers"), (UNIT, "units"), (NODE, "nodes")]
        sections += [(np.dtype("<f4"), "nodes"), (ROOT, "roots")]
        at = HEADER
        read: list[NDArray[Any]] = []
        for dtype, name in sections:
            read.append(np.frombuffer(packed, dtype, many[name], at))
            at += -(-dtype.itemsize * many[name] // LINE) * LINE
        groups, searches, slots, forests, keys, uppers, units, nodes, values, roots = read
        group_of = np.zeros(len(slots), np.int64)
        for number, group in enumerate(groups):
            group_of[int(group["slot"]) : int(group["slot"] + group["slots"])] = number
        start, scale, offset = (
            torch.from_numpy(slots[name].copy()).to(device) for name in ("start", "scale", "offset")
        )
        return cls(
            features,
            outputs,
            len(groups),
            _searches(searches, keys, columns, device),
            Trees.of(
                slots,
                group_of,
                _words(uppers),
                _words(units),
                units["leaf"],
                nodes,
                _words(nodes),
                values,
                roots,
                device,
            ),
            start,
            scale,
            offset,
            _finish(groups, forests, outputs, device),
        )

    def predict(self, rows: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
        """Answer rows; nothing waits for the device.

        Args:
            rows: [n, features] float32, on the device.
            groups: [n] int64, the number of each row's group; a row of none is answered with NaN. None: group 0.

        Returns:
            [n, outputs] float32.
        """
        several = groups if self.groups > 1 else None
        sums = walk(self.trees, self.searches.ranks(rows), several)
        margins = (sums + self.start[:, None]) * self.scale[:, None] + self.offset[:, None]
        made = self.finish.answers(margins, several).to(torch.float32)
        if groups is None:
            return made
        known = (groups >= 0) & (groups < self.groups)
        return torch.where(known[:, None], made, torch.nan)


def _words(nodes: NDArray[Any]) -> NDArray[np.int32]:
    """Columns and ranks of nodes in a word each: the column above 15 bits of rank."""
    return ((nodes["column"].astype(np.int32) // LANES) << 15 | nodes["rank"].astype(np.int32)).reshape(-1)


def _searches(searches: NDArray[Any], keys: NDArray[np.float32], columns: int, device: torch.device) -> Searches:
    wide = np.full((len(searches), max(1, int(searches["count"].max()))), np.inf, np.float32)
    for number, search in enumerate(searches):
        wide[number, : search["count"]] = keys[search["key"] : search["key"] + search["count"]]
    said = {name: torch.from_numpy(searches[name].astype(np.int64)).to(device) for name in ("feature", "count")}
    sides = {name: torch.from_numpy(searches[name].astype(np.int64)).to(device) for name in ("low", "high")}
    return Searches(said["feature"], torch.from_numpy(wide).to(device), said["count"], **sides, columns=columns)


def _finish(groups: NDArray[Any], forests: NDArray[Any], outputs: int, device: torch.device) -> Finish:
    parts: dict[str, list[Any]] = {name: [] for name in ("columns", "group", "postprocessor", "alpha", "weight")}
    softmax: list[torch.Tensor] = []
    added: list[list[int]] = [[] for _ in range(outputs)]
    for number, group in enumerate(groups):
        for forest in forests[int(group["forest"]) : int(group["forest"] + group["forests"])]:
            its = range(len(parts["columns"]), len(parts["columns"]) + int(forest["width"]))
            for column, place in enumerate(its):
                parts["columns"].append(int(group["slot"] + forest["slot"]) + column)
                parts["group"].append(number)
                for name in ("postprocessor", "alpha", "weight"):
                    parts[name].append(forest[name])
                added[int(forest["output"]) + column].append(place)
            if forest["postprocessor"] == _SOFTMAX:
                softmax.append(torch.tensor(list(its), device=device))
    said = {name: torch.from_numpy(np.array(values)).to(device) for name, values in parts.items()}
    said["postprocessor"] = said["postprocessor"].to(torch.int64)
    return Finish(**said, softmax=tuple(softmax), outputs=tuple(torch.tensor(each, device=device) for each in added))
