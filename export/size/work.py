"""What is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import reduce
from typing import Any

__all__ = ["Sizes", "Work", "total"]


@dataclass(frozen=True)
class Work:
    """The work of a part of a repository; all but `trees` and `table_bytes` for one row.

    Attributes:
        trees_met: trees that a row is sent through: of groups, those of the group with most trees.
        trees: trees in all.
        node_visits: comparisons that a row meets on its ways from roots to leaves: the mean over training rows, each
            counted with its weight (XGBoost's hessian, or the number of rows), where the trees say how many reached a
            leaf; else every tree's depth.
        estimated: whether `node_visits` are such means; False where a part of them are depths.
        macs: multiplications with additions of matrix products, convolutions and recurrences, and of queries with the
            vectors of an index that is searched exactly.
        keyed_look_ups: tables of a fitted workflow that are read by a key, once for each element of a list.
        dictionaries: keys that are searched for them: one search serves all tables of the same keys.
        embedding_rows: rows that are read from tables of numbers by an id.
        table_bytes: size of the tables and dictionaries that are looked up, and of indexes.
        searched: indexes that find out for each query which vectors it is compared with: that is not counted.
    """

    trees_met: int = 0
    trees: int = 0
    node_visits: float = 0.0
    estimated: bool = True
    macs: int = 0
    keyed_look_ups: int = 0
    dictionaries: int = 0
    embedding_rows: int = 0
    table_bytes: int = 0
    searched: int = 0

    def __add__(self, other: Work) -> Work:
        """The work of both."""
        summed = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "estimated"
        }
        return Work(**summed, estimated=self.estimated and other.estimated)

    def times(self, rows: int) -> Work:
        """The work of so many rows, on the same trees and tables."""
        by_row = ("trees_met", "node_visits", "macs", "keyed_look_ups", "dictionaries", "embedding_rows")
        return replace(self, **{name: getattr(self, name) * rows for name in by_row})


def total(works: list[Work]) -> Work:
    """The work of all."""
    return reduce(Work.__add__, works, Work())


@dataclass(frozen=True)
class Sizes:
    """The work of a repository, for one row.

    Attributes:
        parts: the ensemble layout's steps, or what a fused model holds: a forest step by its name, all else together.
        interpreted: steps that NVTabular itself serves: nothing of them is counted.
        saved: part -> multiply-accumulates that the exact rewrites of its graphs saved a row.
    """

    parts: Mapping[str, Work]
    interpreted: tuple[str, ...]
    saved: Mapping[str, int]

    @property
    def served(self) -> Work:
        """All that is computed for a row."""
        return total(list(self.parts.values()))

    @property
    def macs_as_trained(self) -> int:
        """Multiply-accumulates of the nets as they were trained: those served, and those that rewrites saved."""
        return self.served.macs + sum(self.saved.values())

    def document(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "a_row": asdict(self.served) | {"macs_as_trained": self.macs_as_trained},
            "parts": {
                name: asdict(work) | {"macs_as_trained": work.macs + self.saved.get(name, 0)}
                for name, work in self.parts.items()
            },
            "interpreted": list(self.interpreted),
        }
