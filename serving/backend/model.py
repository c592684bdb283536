"""The Python half of Triton's backend `tristage`: backend.c opens a model here and hands over requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.serving.backend import MAX_QUEUE
from tristage.serving.graph import GraphError, Tensor, not_utf8
from tristage.serving.runner import Tensors, check_config, evaluate, open_folder, read

__all__ = ["open_model"]

# TRITONSERVER_DataType
_TYPES = {
    f"TYPE_{name}": number
    for number, name in enumerate(
        ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"), 1
    )
} | {"TYPE_STRING": 13}

Given = Mapping[str, tuple[Any, tuple[int, ...]]]
Answer = list[tuple[str, int, tuple[int, ...], Any]]


def open_model(folder: str, config: str) -> tuple[Callable[[Sequence[Given]], list[Answer | str]], int, int]:
    """Open a model's version folder.

    Args:
        folder: holds what the model computes.
        config: the model's configuration, JSON.

    Returns:
        What answers requests, how many rows of several may be joined, and how many requests may wait (0: any number).
        A request is, by input, (values, shape); the values are a buffer, or for texts a list of str,
        or bytes where one is not UTF-8. For each a list of (output, Triton's type, shape, buffer), or the error that
        it ends with.

    Raises:
        GraphError: it cannot be opened or has other tensors than its configuration; the model does not load.
    """
    graph = open_folder(Path(folder))
    said = json.loads(config)
    check_config(graph, said)
    waiting = said.get("parameters", {}).get(MAX_QUEUE, {}).get("string_value", "0")
    types = {tensor.name: _TYPES[tensor.triton_type] for tensor in graph.outputs}

    def answer(requests: Sequence[Given]) -> list[Answer | str]:
        answers = evaluate(graph, [read(graph, request, _array) for request in requests])
        return [str(answer) if isinstance(answer, GraphError) else _give(answer, types) for answer in answers]

    return answer, said["max_batch_size"], int(waiting)


def _array(tensor: Tensor, given: tuple[Any, tuple[int, ...]]) -> NDArray[Any]:
    values, shape = given
    if tensor.dtype != object:
        return np.frombuffer(values, tensor.dtype).reshape(shape)
    if isinstance(values, bytes):
        raise not_utf8(tensor.name, values)
    texts = np.empty(len(values), dtype=object)
    texts[:] = values
    return texts.reshape(shape)


def _give(answer: Tensors, types: Mapping[str, int]) -> Answer:
    return [
        (name, types[name], array.shape, _texts(array) if array.dtype == object else np.ascontiguousarray(array))
        for name, array in answer.items()
    ]


def _texts(array: NDArray[Any]) -> bytes:
    """Texts as Triton has them: each behind its length in 4 bytes."""
    encoded = [text.encode() for text in array.ravel().tolist()]
    return b"".join(part for text in encoded for part in (len(text).to_bytes(4, "little"), text))
