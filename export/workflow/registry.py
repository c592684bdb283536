"""Which operator is lowered by which function. Others add their own with `@lowers(TheirOperator)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.values import Value

__all__ = ["LOWERINGS", "Lowering", "Node", "lowering_of", "lowers"]


@dataclass(frozen=True)
class Node:
    """One node of a workflow, as a lowering sees it.

    Attributes:
        op: the fitted NVTabular operator.
        selector: the columns it was applied to, NVTabular's ColumnSelector with its groups.
        columns: every column that reaches the node, dependencies too, by name.
    """

    op: Any
    selector: Any
    columns: Mapping[str, Value]

    @property
    def names(self) -> list[str]:
        """The selected columns' names, flat."""
        return list(self.selector.names)

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The selected columns by group; a single column is a group of one."""
        return [(group,) if isinstance(group, str) else tuple(group) for group in self.selector.grouped_names]


Lowering = Callable[[Node, GraphBuilder], dict[str, Value]]
LOWERINGS: dict[str, Lowering] = {}


def lowers(*operators: type | str) -> Callable[[Lowering], Lowering]:
    """Register a lowering for operator classes, given as classes or, so that nothing is imported, as `module.Class`.

    The function gets a Node and the GraphBuilder and returns the node's output columns by name.

    Raises:
        ValueError: an operator already has a lowering.
    """

    def register(lowering: Lowering) -> Lowering:
        for operator in map(_qualified, operators):
            if operator in LOWERINGS:
                raise ValueError(f"{operator} already has a lowering, {LOWERINGS[operator].__name__}")
            LOWERINGS[operator] = lowering
        return lowering

    return register


def lowering_of(op: Any) -> Lowering | None:
    """The lowering of an operator: its own class's, never a parent's, since a subclass may compute something else."""
    return LOWERINGS.get(_qualified(type(op)))


def _qualified(operator: type | str) -> str:
    return operator if isinstance(operator, str) else f"{operator.__module__}.{operator.__qualname__}"
