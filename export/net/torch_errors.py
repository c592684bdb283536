"""What torch cannot export, in words: the layer, the operator, and the shortest way round."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["first_line", "why_no_export", "why_no_onnx"]

_OWN_ONNX = (
    "export the net yourself with torch.onnx.export(..., custom_translation_table={the operator: your ONNX for it}) "
    "and give the .onnx"
)
_REWRITE = f"write the layer with operators that ONNX has, or {_OWN_ONNX}"


def why_no_export(error: Exception, module: Any) -> str:
    """Why `torch.export.export` refused a module.

    Args:
        error: what it raised.
        module: the module.
    """
    layers = {id(part): name for name, part in module.named_modules()}
    where = "its forward"
    for frame in _frames(error):
        own = frame.f_locals.get("self")
        if id(own) in layers and frame.f_code.co_name == "forward":
            where = f"layer {layers[id(own)] or 'the net itself'} ({type(own).__name__})"
    text = str(error)
    if type(error).__name__ == "GuardOnDataDependentSymNode" or "data-dependent" in text:
        line = re.search(r'File ".*?", line \d+, in \w+\n\s+(.*)', text)
        code = f" (`{line[1].strip()}`)" if line else ""
        return f"{where} decides by the values in a tensor{code}, which a graph cannot; use torch.where instead"
    fixed = re.search(r"specialized it to be a constant \((\d+)\)", text)
    if fixed:
        return (
            f"its forward works for {fixed[1]} rows only, as many as its examples have: somewhere it takes the number "
            "of rows as fixed; reshape with -1, and take the number from tensor.shape[0]"
        )
    return f"torch.export cannot follow {where} ({first_line(error)}); {_REWRITE}"


def why_no_onnx(error: Exception) -> str:
    """Why torch's exporter could not write a program as ONNX."""
    where = ""
    for frame in _frames(error):
        node = frame.f_locals.get("node")
        stack = getattr(node, "meta", {}).get("nn_module_stack") if node is not None else None
        if stack:
            name, kind = list(stack.values())[-1]
            kind = kind if isinstance(kind, str) else kind.__name__
            where = f"layer {name or 'the net itself'} ({kind.rpartition('.')[2]})"
    for each in _chain(error):
        lacking = re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'", str(each))
        if lacking:
            user = f"{where} uses" if where else "it uses"
            return f"{user} the operator {lacking[1]}, which torch cannot write as ONNX; {_REWRITE}"
    said = list(_chain(error))[-1]
    return f"torch cannot write {where or 'it'} as ONNX ({first_line(said)}); {_REWRITE}"


def first_line(error: BaseException) -> str:
    """The first line of an error that says anything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _frames(error: BaseException) -> Iterator[FrameType]:
    """The frames that an error and its causes went through, the innermost last."""
    for each in _chain(error):
        for frame, _ in traceback.walk_tb(each.__traceback__):
            yield frame
