"""The walk through trees as a kernel of OpenAI's Triton language, which torch brings with it for NVIDIA's GPUs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tristage.serving.device.walk import Trees

__all__ = ["walk_with_kernel"]

_LANES = 256  # walks of one program that go side by side
_ROWS = 1 << 16  # rows of one launch, which bounds the partial sums


@triton.jit  # type: ignore[untyped-decorator]
def _walk(  # type: ignore[no-untyped-def]
    ranks,
    groups,
    chunks,
    uppers,
    units,
    leaves,
    following,
    roots,
    sums,
    rows,
    stride,
    grouped: tl.constexpr,
    linked: tl.constexpr,
    abreast: tl.constexpr,
    at_once: tl.constexpr,
):
    """A chunk of trees for some rows, several trees at a time; sums[chunk, row] becomes the sum of their leaves."""
    chunk = tl.program_id(1)
    group = tl.load(chunks + chunk * 6)
    upper = tl.load(chunks + chunk * 6 + 1)
    first_upper = tl.load(chunks + chunk * 6 + 2)
    first = tl.load(chunks + chunk * 6 + 3)
    count = tl.load(chunks + chunk * 6 + 4)
    row = tl.program_id(0) * at_once + tl.arange(0, at_once)
    meets = row < rows
    if grouped:
        meets = meets & (tl.load(groups + row, mask=meets, other=-1) == group)
    total = tl.zeros([at_once], dtype=tl.float64)
    if tl.max(meets.to(tl.int32), axis=0) > 0:
        for begin in range(0, count, abreast):
            tree = begin + tl.arange(0, abreast)
            inside = (tree < count)[:, None] & meets[None, :]
            if linked:
                root = tl.load(roots + first_upper + tree, mask=tree < count, other=0)
                at = root[:, None] + tl.zeros([abreast, at_once], dtype=tl.int64)
                for _ in range(0, upper):
                    word = tl.load(units + at, mask=inside, other=0)
                    rank = tl.load(ranks + (word >> 15).to(tl.int64) * stride + row[None, :], mask=inside, other=0)
                    at = tl.load(following + at, mask=inside, other=0) + (rank > (word & 0x7FFF)).to(tl.int64)
                leaf = tl.load(leaves + at, mask=inside, other=0.0)
            else:
                heap = (first_upper + tree).to(tl.int64)[:, None] * 16
                at = tl.full([abreast, at_once], 1, dtype=tl.int64)
                for _ in range(0, upper):
                    word = tl.load(uppers + heap + at, mask=inside, other=0)
                    rank = tl.load(ranks + (word >> 15).to(tl.int64) * stride + row[None, :], mask=inside, other=0)
                    at = at * 2 + (rank > (word & 0x7FFF)).to(tl.int64)
                unit = ((first + (tree << upper)).to(tl.int64)[:, None] + at - (1 << upper)) * 16
                at = tl.full([abreast, at_once], 1, dtype=tl.int64)
                for _ in range(0, 4):
                    word = tl.load(units + unit + at, mask=inside, other=0)
                    rank = tl.load(ranks + (word >> 15).to(tl.int64) * stride + row[None, :], mask=inside, other=0)
                    at = at * 2 + (rank > (word & 0x7FFF)).to(tl.int64)
                leaf = tl.load(leaves + unit + at - 16, mask=inside, other=0.0)
            total += tl.sum(leaf.to(tl.float64), axis=0)
    tl.store(sums + chunk.to(tl.int64) * rows + row, total, mask=row < rows)


def walk_with_kernel(trees: Trees, ranks: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
    """`tristage.serving.device.walk.walk` on a GPU. Rows are sorted by group, so that a program's rows share trees."""
    order = None
    if groups is not None:
        order = torch.argsort(groups)
        ranks, groups = ranks.index_select(1, order), groups.index_select(0, order)
    count = ranks.shape[1]
    parts = []
    for first in range(0, count, _ROWS):
        some = ranks[:, first : first + _ROWS].contiguous()
        its = None if groups is None else groups[first : first + _ROWS].contiguous()
        parts.append(_launch(trees, some, its))
    sums = torch.cat(parts, dim=1)
    return sums if order is None else torch.empty_like(sums).index_copy_(1, order, sums)


def _launch(trees: Trees, ranks: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
    """Rows that are sorted by group -> [slots, rows]."""
    rows = ranks.shape[1]
    side = min(_LANES, triton.next_power_of_2(rows))
    sums = torch.zeros(trees.slots, rows, dtype=torch.float64, device=ranks.device)
    for linked, chunks, owners in (
        (False, trees.chunks, trees.owners),
        (True, trees.linked_chunks, trees.linked_owners),
    ):
        if not len(chunks):
            continue
        made = torch.empty(len(chunks), rows, dtype=torch.float64, device=ranks.device)
        _walk[(triton.cdiv(rows, side), len(chunks))](
            ranks,
            ranks if groups is None else groups,
            chunks,
            trees.uppers,
            trees.linked if linked else trees.units,
            trees.values if linked else trees.leaves,
            trees.following,
            trees.roots,
            made,
            rows,
            rows,
            grouped=groups is not None,
            linked=linked,
            abreast=_LANES // side,
            at_once=side,
        )
        sums += owners @ made
    return sums
