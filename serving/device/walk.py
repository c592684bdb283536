"""Trees walked on a device: by a kernel of OpenAI's Triton language on a GPU, else by torch's own operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tristage.serving.forest.packed import LINKED, LOWER

__all__ = ["Trees", "walk"]

_RANK = 0x7FFF  # of a word, below the column
_CHUNK = 64  # trees that one program of the kernel adds up
_TILE = 1 << 24  # walks side by side, where torch's operators walk


@dataclass(frozen=True)
class Kind:
    """The trees of one depth, or all linked ones.

    Attributes:
        upper: levels above the units; None of linked trees.
        levels: of linked trees, the most.
        slot: of each tree, the sum that it is added to.
        first_upper: of each tree, its upper heap.
        first: of each tree, its first unit, or its root's node.
    """

    upper: int | None
    levels: int
    slot: torch.Tensor
    first_upper: torch.Tensor
    first: torch.Tensor


@dataclass(frozen=True)
class Trees:
    """What is walked.

    Attributes:
        slots: how many sums there are.
        group: of each slot, whose rows meet its trees.
        uppers: words of the heaps of upper levels, 16 each.
        units: words of the units' heaps, 16 each.
        leaves: 16 of each unit.
        linked: words of linked nodes.
        following: the left child of each.
        values: the leaf that each is.
        kinds: the trees, by depth.
        chunks: [chunks, 6]: group, upper, first upper heap, first unit, trees, and slot; of the trees in units.
        owners: [slots, chunks], 1 where a slot has a chunk, else 0: a product adds them in the same order each time.
        linked_chunks: [chunks, 6]: group, levels, first tree among `roots`, 0, trees, and slot.
        linked_owners: as owners.
        roots: the node that each linked tree begins with.
    """

    slots: int
    group: torch.Tensor
    uppers: torch.Tensor
    units: torch.Tensor
    leaves: torch.Tensor
    linked: torch.Tensor
    following: torch.Tensor
    values: torch.Tensor
    kinds: tuple[Kind, ...]
    chunks: torch.Tensor
    owners: torch.Tensor
    linked_chunks: torch.Tensor
    linked_owners: torch.Tensor
    roots: torch.Tensor

    @classmethod
    def of(
        cls,
        slots: NDArray[Any],
        group_of: NDArray[np.int64],
        uppers: NDArray[np.int32],
        units: NDArray[np.int32],
        leaves: NDArray[np.float32],
        nodes: NDArray[Any],
        linked: NDArray[np.int32],
        values: NDArray[np.float32],
        roots: NDArray[Any],
        device: torch.device,
    ) -> Trees:
        """Bring a packed forest's sections to a device."""
        chunks: dict[bool, list[tuple[int, ...]]] = {False: [], True: []}
        by_kind: dict[int, list[tuple[int, int, int]]] = {}
        for number, slot in enumerate(slots):
            upper, trees = int(slot["upper"]), int(slot["trees"])
            first, first_upper = int(slot["first"]), int(slot["first_upper"])
            is_linked = upper == LINKED
            for tree in range(trees):
                place = int(roots["node"][first + tree]) if is_linked else first + (tree << upper)
                by_kind.setdefault(upper, []).append((number, first_upper + tree, place))
            for tree in range(0, trees, _CHUNK):
                count = min(_CHUNK, trees - tree)
                group = int(group_of[number])
                if is_linked:
                    levels = int(roots["levels"][first + tree : first + tree + count].max())
                    chunks[True].append((group, levels, first + tree, 0, count, number))
                else:
                    chunks[False].append((group, upper, first_upper + tree, first + (tree << upper), count, number))

        def put(array: Any, dtype: Any) -> torch.Tensor:
            return torch.from_numpy(np.array(array, dtype)).to(device)

        kinds = []
        for upper, trees_of in sorted(by_kind.items()):
            slot_of, heaps, places = np.array(trees_of).T
            levels = int(roots["levels"].max()) if upper == LINKED else 0
            kinds.append(
                Kind(
                    None if upper == LINKED else upper,
                    levels,
                    put(slot_of, np.int64),
                    put(heaps, np.int64),
                    put(places, np.int64),
                )
            )
        return cls(
            len(slots),
            put(group_of, np.int64),
            put(uppers, np.int32),
            put(units, np.int32),
            put(leaves.reshape(-1), np.float32),
            put(linked, np.int32),
            put(nodes["next"], np.int64),
            put(values, np.float32),
            tuple(kinds),
            put(chunks[False], np.int32).reshape(-1, 6),
            put(_owners(chunks[False], len(slots)), np.float64),
            put(chunks[True], np.int32).reshape(-1, 6),
            put(_owners(chunks[True], len(slots)), np.float64),
            put(roots["node"], np.int64),
        )


def _owners(chunks: list[tuple[int, ...]], slots: int) -> NDArray[np.float64]:
    owner = np.array([chunk[5] for chunk in chunks], np.int64)
    owns: NDArray[np.bool_] = np.arange(slots)[:, None] == owner[None, :]
    return owns.astype(np.float64)


def walk(trees: Trees, ranks: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
    """Add up the leaves that rows come to.

    Args:
        trees: what is walked.
        ranks: [columns, rows] int16.
        groups: [rows]; rows of a group meet only its trees. None: all meet all.

    Returns:
        [slots, rows] float64; 0 where a row does not meet a slot's trees, or anything.
    """
    if ranks.device.type == "cuda":
        from tristage.serving.device.kernel import walk_with_kernel

        return walk_with_kernel(trees, ranks, groups)
    return walk_with_torch(trees, ranks)


def walk_with_torch(trees: Trees, ranks: torch.Tensor) -> torch.Tensor:
    """Every tree, level by level, for all rows: `walk` of torch's operators, on any device."""
    count = ranks.shape[1]
    sums = torch.zeros(trees.slots, count, dtype=torch.float64, device=ranks.device)
    for kind in trees.kinds:
        at_once = max(1, _TILE // len(kind.slot))
        for first in range(0, count, at_once):
            some = ranks[:, first : first + at_once]
            leaves = _linked(trees, kind, some) if kind.upper is None else _complete(trees, kind, kind.upper, some)
            sums[:, first : first + at_once].index_add_(0, kind.slot, leaves.to(torch.float64))
    return sums


def _complete(trees: Trees, kind: Kind, upper: int, ranks: torch.Tensor) -> torch.Tensor:
    """Leaves [trees, rows] of complete trees."""
    at = _descend(trees.uppers, kind.first_upper[:, None] * 16, upper, ranks)
    unit = (kind.first[:, None] + at - (1 << upper)) * 16
    at = _descend(trees.units, unit, LOWER, ranks)
    return trees.leaves[unit + at - 16]


def _descend(words: torch.Tensor, heap: torch.Tensor, levels: int, ranks: torch.Tensor) -> torch.Tensor:
    """Where walks leave heaps whose first words are at `heap`: [trees, rows]."""
    at = torch.ones(len(heap), ranks.shape[1], dtype=torch.int64, device=ranks.device)
    for _ in range(levels):
        at = at * 2 + _right(words[heap + at], ranks)
    return at


def _linked(trees: Trees, kind: Kind, ranks: torch.Tensor) -> torch.Tensor:
    """Leaves [trees, rows] of linked trees."""
    at = kind.first[:, None].expand(-1, ranks.shape[1])
    for _ in range(kind.levels):
        at = trees.following[at] + _right(trees.linked[at], ranks)
    return trees.values[at]


def _right(words: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """1 where a row goes right at a node, 0 where left: [trees, rows]."""
    return (ranks.gather(0, (words >> 15).to(torch.int64)) > (words & _RANK)).to(torch.int64)
