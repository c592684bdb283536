"""ONNX files and models, as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.net.model import Net, NetConverter, net_from_onnx

__all__ = ["ONNX"]


def convert(artifact: Any, what: str) -> Net:
    """Take an ONNX model; ONNX Runtime is asked what it answers.

    Raises:
        ArtifactError: the file is missing, or is no valid ONNX.
    """
    import onnxruntime

    try:
        model = onnx.load(artifact) if isinstance(artifact, Path) else artifact
        onnx.checker.check_model(model)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # protobuf, checker and runtime each raise their own kinds
        raise ArtifactError(
            f"{what}: {artifact if isinstance(artifact, Path) else 'it'} is no valid ONNX model ({error})"
        ) from error
    names = [value.name for value in session.get_inputs()]

    def predict(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        return np.asarray(session.run(None, {name: inputs[name] for name in names})[0])

    return net_from_onnx(model, what, predict)


ONNX = NetConverter(framework="ONNX", suffixes=(".onnx",), modules=("onnx",), convert=convert)
