"""Exact rewrites of a net's graph, in the order they are applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import onnx

from tristage.errors import StackError
from tristage.export.rewrites.batch_norm import FOLD_BATCH_NORM
from tristage.export.rewrites.editable import EditableGraph
from tristage.export.rewrites.embeddings import FOLD_EMBEDDINGS
from tristage.export.rewrites.engine import RECURRENCE_ENGINE
from tristage.export.rewrites.finding import Finding, Rewrite
from tristage.export.rewrites.look_ups import FUSE_LOOK_UPS, PLAIN_IDS
from tristage.export.rewrites.pooling import COMMUTE_POOLING
from tristage.export.rewrites.recurrences import OPEN_RECURRENCES
from tristage.export.rewrites.unread import DROP_UNREAD

__all__ = ["REWRITES", "check_names", "rewrite"]

# in the order they are applied; others append their own
REWRITES: list[Rewrite] = [
    DROP_UNREAD,
    PLAIN_IDS,
    FOLD_BATCH_NORM,
    OPEN_RECURRENCES,
    FOLD_EMBEDDINGS,
    COMMUTE_POOLING,
    FUSE_LOOK_UPS,
    RECURRENCE_ENGINE,
]


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse a name that no rewrite has.

    Raises:
        StackError: names it and those there are.
    """
    known = [rewrite.name for rewrite in REWRITES]
    for name in names:
        if name not in known:
            raise StackError(f"{where} names the rewrite {name}, which there is not; choose from {', '.join(known)}")


def rewrite(
    model: onnx.ModelProto,
    tables: Path | None = None,
    names: Sequence[str] | None = None,
    *,
    engine: bool = True,
    change: Callable[[EditableGraph], None] | None = None,
) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
    """Rewrite a model.

    Args:
        model: the model; it is left as it is.
        tables: the folder of its large tensors, where new ones are written to; None where all are in memory.
        names: the rewrites to apply; None applies all.
        engine: whether tristage's own engines may be used; else the model stays one that ONNX Runtime runs alone.
        change: what else is done to the graph, exact or not, before parts of it are handed to engines.

    Returns:
        The rewritten model, and what was found.
    """
    chosen = [each for each in REWRITES if (names is None or each.name in names) and (engine or not each.engine)]
    if not chosen and change is None:
        return model, ()
    graph = EditableGraph(model, tables)
    findings = [finding for each in chosen if not each.engine for finding in each.apply(graph)]
    if change is not None:
        change(graph)
    findings += [finding for each in chosen if each.engine for finding in each.apply(graph)]
    return graph.finish(), tuple(findings)
