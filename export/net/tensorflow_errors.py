"""What TensorFlow and tf2onnx cannot export, in words: the layer, the operator, and the shortest way round."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from typing import Any

import onnx

__all__ = ["why_no_graph", "why_no_onnx"]

_REWRITE = "write the layer with operations that ONNX has (keras.ops has few others)"


def why_no_graph(error: Exception, model: Any) -> str:
    """Why a Keras model could not be traced.

    Args:
        error: what its call raised.
        model: the model.
    """
    layers = {id(layer): layer for layer in model._flatten_layers()}
    where = ""
    each: BaseException | None = error
    while each is not None:
        for frame, _ in traceback.walk_tb(each.__traceback__):
            layer = layers.get(id(frame.f_locals.get("self")))
            if layer is not None and layer is not model:
                where = f"layer {layer.name} ({type(layer).__name__}) "
        each = each.__cause__ or each.__context__
    return f"{where or 'it '}cannot be traced into a graph ({_last_line(error)}); {_REWRITE}"


def why_no_onnx(error: Exception, made: onnx.ModelProto | None, layers: Sequence[str]) -> str:
    """Why tf2onnx could not write a graph as ONNX.

    Args:
        error: what it or the checker raised.
        made: the model that it left, with operations in it that ONNX does not have; None where it left none.
        layers: names of the net's layers.
    """
    for node in () if made is None else made.graph.node:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type):
            # Keras numbers the scope of a layer that is called again
            path = [re.sub(r"_\d+$", "", part) if part not in layers else part for part in node.name.split("/")]
            layer = next((part for part in reversed(path) if part in layers), "")
            where = f"layer {layer}" if layer else node.name
            return f"{where} uses TensorFlow's operation {node.op_type}, which tf2onnx cannot write as ONNX; {_REWRITE}"
    return f"tf2onnx cannot write it as ONNX ({_last_line(error)}); {_REWRITE}"


def _last_line(error: Exception) -> str:
    """What an error says: the last line, since TensorFlow quotes code before, and Keras lists arguments after."""
    said = str(error).partition("Arguments received by")[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
