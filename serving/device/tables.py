"""Large tables: whole on the device where they fit, else their most asked rows there and all of them on the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

__all__ = ["LARGE", "Budget", "HotTable", "Table", "WholeTable"]

LARGE = 16 << 20  # bytes from which on a table counts against the budget
_SETTLE = 1 << 20  # ids asked for between two looks at which rows are asked for most


class Table(Protocol):
    """Rows by their number."""

    def __len__(self) -> int:
        """How many rows there are."""

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of ids [n], each from 0 to below the length, on the device: [n, ...]."""


@dataclass(frozen=True)
class WholeTable:
    """A table that lies on the device."""

    values: torch.Tensor

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.values)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of ids; see Table."""
        return self.values.index_select(0, ids)


class HotTable:
    """A table on the host, whose most asked rows lie on the device too.

    Which these are is measured: every id that is asked for is counted, and after each million the rows that were
    asked for most, older counts halved, take the places. Ids that miss wait for the host.

    Attributes:
        asked: ids asked for so far.
        found: how many of them lay on the device.
    """

    def __init__(self, values: torch.Tensor, places: int, device: torch.device) -> None:
        """Begin with the first rows.

        Args:
            values: the table, on the host; pinned where the device is a GPU.
            places: rows on the device.
            device: which.
        """
        self._values = values.pin_memory() if device.type == "cuda" else values
        places = max(1, min(places, len(values)))
        self._hot = values[:places].to(device)
        self._place = torch.full((len(values),), -1, dtype=torch.int32, device=device)
        self._place[:places] = torch.arange(places, dtype=torch.int32, device=device)
        self._counts = torch.zeros(len(values), dtype=torch.float32, device=device)
        self._since = 0
        self.asked = self.found = 0

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._values)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of ids; see Table."""
        self._counts.index_add_(0, ids, torch.ones_like(ids, dtype=torch.float32))
        place = self._place[ids]
        made = self._hot.index_select(0, place.clamp(min=0).to(torch.int64))
        missing = torch.nonzero(place < 0).reshape(-1)
        if len(missing):
            wanted = ids[missing].to("cpu")
            made[missing] = self._values.index_select(0, wanted).to(made.device)
        self.asked += len(ids)
        self.found += len(ids) - len(missing)
        self._since += len(ids)
        if self._since >= _SETTLE:
            self._settle()
        return made

    def _settle(self) -> None:
        """Give the places to the rows that were asked for most."""
        best = torch.topk(self._counts, len(self._hot)).indices
        self._hot = self._values.index_select(0, best.to("cpu")).to(self._hot.device)
        self._place.fill_(-1)
        self._place[best] = torch.arange(len(best), dtype=torch.int32, device=best.device)
        self._counts /= 2
        self._since = 0


@dataclass
class Budget:
    """The device's memory that large tables may take.

    Attributes:
        device: whose.
        bytes_left: of what was given.
        hot: the tables that did not fit whole.
    """

    device: torch.device
    bytes_left: int
    hot: list[HotTable] = field(default_factory=list)

    def place(self, values: torch.Tensor) -> Table:
        """Take a table in, whole if it fits, else as many of its rows as half of what is left holds."""
        size = values.numel() * values.element_size()
        if size < LARGE or size <= self.bytes_left:
            self.bytes_left -= size if size >= LARGE else 0
            return WholeTable(values.to(self.device))
        taken = self.bytes_left // 2
        self.bytes_left -= taken
        table = HotTable(values, taken * len(values) // size, self.device)
        self.hot.append(table)
        return table
