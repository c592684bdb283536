"""Which raw columns an output column of a workflow is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Any

__all__ = ["raw_names"]

_LAMBDA = "merlin.dag.ops.udf.UDF"

# operator -> which columns it reads when it is fitted only
_FITTED_ON: dict[str, Callable[[Any], Iterable[str]]] = {
    "nvtabular.ops.target_encoding.TargetEncoding": lambda op: op.target_columns,
    "nvtabular.ops.join_groupby.JoinGroupby": lambda op: op.cont_names.names,
}


def raw_names(node: Any, names: AbstractSet[str]) -> set[str]:
    """The raw columns that columns of a node are made of, without those that only fitting reads.

    Of an operator that is not NVTabular's own, every column may be made of all that reach it.
    """
    wanted = _inputs(node, names)
    found: set[str] = set()
    made: set[str] = set()
    for upstream in node.parents_with_dependencies:
        its = set(upstream.output_schema.column_names)
        made |= its
        if wanted & its:
            found |= raw_names(upstream, wanted & its)
    return found | (wanted - made)


def _inputs(node: Any, names: AbstractSet[str]) -> set[str]:
    """Which of the columns that reach a node some of its columns are made of."""
    op = node.op
    if op.is_subgraph:
        return raw_names(op.graph.output_node, names)
    reaching = {*node.input_schema.column_names, *node.dependency_columns.names}
    operator = f"{type(op).__module__}.{type(op).__qualname__}"
    own = operator.startswith(("nvtabular.ops.", "merlin.dag.ops."))
    if not own or (operator == _LAMBDA and op._param_count > 1):
        return reaching
    mapping = op.column_mapping(node.input_columns.resolve(node.input_schema))
    wanted: set[str] = set()
    for name in names:
        read = set(mapping.get(name, reaching))
        wanted |= read if read <= reaching else reaching
    fitted_on = _FITTED_ON.get(operator)
    return wanted if fitted_on is None else wanted - set(fitted_on(op))
