"""What no output needs, dropped."""

from __future__ import annotations

from collections.abc import Iterator

from tristage.export.rewrites.editable import EditableGraph
from tristage.export.rewrites.finding import Finding, Rewrite

__all__ = ["DROP_UNREAD"]


def _apply(graph: EditableGraph) -> Iterator[Finding]:
    before = graph.constant_bytes()
    gone = graph.drop_unread()
    freed = before - graph.constant_bytes()
    if gone or freed:
        yield Finding("drop_unread", f"{len(gone)} nodes that no output needs", True, bytes=-freed)


DROP_UNREAD = Rewrite("drop_unread", "what no output needs is dropped", _apply)
