"""Large tensors in files of their own beside a graph: written once, memory-mapped by whoever reads them.

A file's name tells its content, so that equal tables are one file and every export gives the same names.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["LARGE", "externalize", "nested_tensors", "read_tensor", "refer", "rename", "store"]

LARGE = 1 << 20  # bytes; a larger tensor lies in a file
_BLOCK = 1 << 24  # bytes hashed and written at a time


def store(values: NDArray[Any], folder: Path) -> str:
    """Write an array to a file of `folder`; returns the file's name. Only a block of it is copied in memory."""
    digest = hashlib.sha256()
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="scratch-", delete=False) as file:
        for start in range(0, len(flat), _BLOCK):
            block = flat[start : start + _BLOCK].data
            digest.update(block)
            file.write(block)
    return rename(Path(file.name), digest.hexdigest())


def rename(file: Path, digest: str) -> str:
    """Give a file the name that tells its content, whose SHA-256 is `digest`; returns it."""
    name = f"table-{digest[:16]}.bin"
    file.rename(file.with_name(name))
    return name


def refer(name: str, file: str, shape: Iterable[int], onnx_type: int, nbytes: int) -> onnx.TensorProto:
    """A tensor `name` whose values are all of a file beside the graph."""
    tensor = TensorProto(name=name, dims=shape, data_type=onnx_type)
    tensor.data_location = TensorProto.EXTERNAL
    for key, said in (("location", file), ("offset", "0"), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=said)
    return tensor


def externalize(name: str, values: NDArray[Any], folder: Path | None) -> onnx.TensorProto:
    """An array as a tensor `name`: in a file of `folder` where it is large, else in the tensor itself."""
    if folder is None or values.nbytes < LARGE:
        return numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    return refer(name, store(values, folder), values.shape, kind, values.nbytes)


def read_tensor(tensor: onnx.TensorProto, folder: Path | None) -> NDArray[Any]:
    """A tensor's values; those in a file of `folder` are mapped, not read."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.asarray(numpy_helper.to_array(tensor))
    assert folder is not None
    said = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    offset, shape = int(said.get("offset", 0)), tuple(tensor.dims)
    if not np.prod(shape, dtype=np.int64):
        return np.empty(shape, dtype)
    values: NDArray[Any] = np.memmap(folder / said["location"], dtype, "r", offset, shape)
    return values


def nested_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Tensors that are attributes of a graph's nodes, and all those of its nested graphs."""
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from ([attribute.t] if attribute.HasField("t") else [])
        yield from attribute.tensors
        for nested in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from nested.initializer
            yield from nested_tensors(nested)
