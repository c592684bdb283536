"""ONNX files and models, as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.net.model import Examples, Net, NetConverter, net_from_onnx
from tristage.export.tables import externalize, nested_tensors, read_tensor

__all__ = ["ONNX"]


def convert(artifact: Any, what: str, tables: Path | None = None, examples: Examples | None = None) -> Net:
    """Take an ONNX model; ONNX Runtime is asked what it answers.

    Raises:
        ArtifactError: the file is missing, or is no valid ONNX.
    """
    import onnxruntime

    try:
        if isinstance(artifact, Path):
            onnx.checker.check_model(str(artifact))  # by its path, so that it may be larger than a protobuf
            session = onnxruntime.InferenceSession(str(artifact), providers=["CPUExecutionProvider"])
            model = onnx.load(artifact, load_external_data=tables is None)
            if tables is not None:
                _take_tables(model, artifact.parent, tables)
        else:
            model = artifact
            onnx.checker.check_model(model)
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # protobuf, checker and runtime each raise their own kinds
        raise ArtifactError(
            f"{what}: {artifact if isinstance(artifact, Path) else 'it'} is no valid ONNX model ({error})"
        ) from error
    names = [value.name for value in session.get_inputs()]

    def predict(inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return [np.asarray(answer) for answer in session.run(None, {name: inputs[name] for name in names})]

    return net_from_onnx(model, what, predict, tables)


def _take_tables(model: onnx.ModelProto, folder: Path, tables: Path) -> None:
    """Copy what lies in files beside a graph: a large tensor to a file of its own in `tables`, a small one into it."""
    for place, tensor in enumerate(model.graph.initializer):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            model.graph.initializer[place].CopyFrom(externalize(tensor.name, read_tensor(tensor, folder), tables))
    for tensor in nested_tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(externalize(tensor.name, read_tensor(tensor, folder), None))


ONNX = NetConverter(framework="ONNX", suffixes=(".onnx",), modules=("onnx",), convert=convert)
