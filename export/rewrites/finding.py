"""What a rewrite is, and what it says it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tristage.export.rewrites.editable import EditableGraph

__all__ = ["Finding", "Rewrite"]


@dataclass(frozen=True)
class Finding:
    """One place where a rewrite applies.

    Attributes:
        rewrite: the rewrite's name.
        where: what was found, such as "GRU 768 -> 128 over 48 steps".
        done: whether it was rewritten.
        macs: multiplications and additions saved a row.
        bytes: by how much the tables grew; negative where they shrank.
        why: where it was left as it is, the reason.
    """

    rewrite: str
    where: str
    done: bool
    macs: int = 0
    bytes: int = 0
    why: str = ""

    def __str__(self) -> str:
        if not self.done:
            return f"{self.rewrite}: {self.where}: left as it is: {self.why}"
        saved = [f"{self.macs:,} multiplications a row saved"] if self.macs else []
        if self.bytes:
            saved.append(f"tables {abs(self.bytes) / 1e6:,.1f} MB {'larger' if self.bytes > 0 else 'smaller'}")
        return f"{self.rewrite}: {self.where}" + (f": {', '.join(saved)}" if saved else "")


@dataclass(frozen=True)
class Rewrite:
    """A rewrite that changes what is computed, and not what comes out.

    Attributes:
        name: what switches it on or off.
        does: what it does, in a few words.
        apply: changes a graph; returns what it found.
        engine: whether what comes out is for tristage's own engines, and not for ONNX Runtime alone.
    """

    name: str
    does: str
    apply: Callable[[EditableGraph], Iterable[Finding]]
    engine: bool = False
