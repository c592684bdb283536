"""Attention of rows whose every key is masked: torch answers 0 for them, and the ONNX it writes does not.

`scaled_dot_product_attention` answers 0 where a mask leaves nothing to attend to. As ONNX the softmax of nothing is NaN
where a mask holds -inf, and the mean of all values where it holds booleans. So the program is made to say the 0 itself.
Within `nn.MultiheadAttention` it is left as it is: evaluated, that answers NaN for such rows, as the ONNX does.
"""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["answer_nothing_with_zero"]


def answer_nothing_with_zero(program: Any) -> Any:
    """A torch.export.ExportedProgram whose masked attention answers 0 for rows that may attend to nothing.

    Args:
        program: the program; it is not changed.

    Returns:
        The same program where it has no such attention, else another one with the same weights.
    """
    import torch

    if not any(map(_masked, program.graph.nodes)):
        return program
    changed = copy.copy(program)
    changed._graph_module = copy.deepcopy(program.graph_module)  # without weights, which the program holds
    graph, aten = changed.graph, torch.ops.aten
    for node in list(filter(_masked, graph.nodes)):
        mask = _mask(node)
        with graph.inserting_after(node):
            made = graph.call_function(aten.where.ScalarOther)
            made.meta = dict(node.meta)
        with graph.inserting_before(made):
            if mask.meta["val"].dtype == torch.bool:
                some = graph.call_function(aten.any.dim, (mask, -1, True))
            else:
                most = graph.call_function(aten.amax.default, (mask, [-1], True))
                some = graph.call_function(aten.ne.Scalar, (most, float("-inf")))
        node.replace_all_uses_with(made)
        made.args = (some, node, 0.0)
    graph.lint()
    changed.graph_module.recompile()
    return changed


def _masked(node: Any) -> bool:
    import torch

    if node.op != "call_function" or node.target is not torch.ops.aten.scaled_dot_product_attention.default:
        return False
    within = (kind for _, kind in node.meta.get("nn_module_stack", {}).values())
    names = [kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}" for kind in within]
    return _mask(node) is not None and "torch.nn.modules.activation.MultiheadAttention" not in names


def _mask(node: Any) -> Any:
    return node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
