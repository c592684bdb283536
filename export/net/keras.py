"""Keras 3 on TensorFlow: a model, or a .keras file."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.net.model import Net, NetConverter, net_from_onnx

__all__ = ["KERAS"]

_OPSET = 18  # the newest that tf2onnx 1.17 writes; `net_from_onnx` brings it up to date


def convert(artifact: Any, what: str) -> Net:
    """Convert a Keras model with named inputs through Keras's own ONNX export.

    Raises:
        ArtifactError: the file is missing or not Keras's, or Keras cannot export a layer.
    """
    import keras

    if isinstance(artifact, Path):
        try:
            model = keras.saving.load_model(artifact, compile=False, safe_mode=True)
        except Exception as error:  # Keras raises whatever its archive reader met
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ArtifactError(
                f"{what}: Keras {keras.__version__} cannot read {artifact} ({reason})", path=artifact
            ) from error
    else:
        model = artifact
    if not getattr(model, "inputs", None):
        raise ArtifactError(f"{what}: the {type(model).__name__} has no defined inputs; build it from keras.Input")
    if len(model.outputs) != 1:
        raise ArtifactError(f"{what}: it has {len(model.outputs)} outputs; a net answers with one tensor [rows, n]")
    for tensor in model.inputs:
        if tensor.dtype == "string":
            raise ArtifactError(f"{what}: input {tensor.name} is text; a net reads numbers")
        if tensor.shape[0] is not None:
            raise ArtifactError(
                f"{what}: its input {tensor.name} takes exactly {tensor.shape[0]} rows; build it from keras.Input "
                "without a batch size"
            )
    names = [tensor.name for tensor in model.inputs]

    def predict(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        return np.asarray(model([inputs[name] for name in names], training=False))

    # Keras exports only a model that has been called
    predict({tensor.name: np.zeros([dim or 1 for dim in tensor.shape], tensor.dtype) for tensor in model.inputs})
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        try:
            model.export(path, format="onnx", verbose=False, opset_version=_OPSET)
        except Exception as error:  # Keras and tf2onnx raise many kinds
            raise ArtifactError(f"{what}: Keras cannot write it as ONNX ({error})") from error
        exported = onnx.load(path)
    return net_from_onnx(exported, what, predict)


KERAS = NetConverter(framework="Keras", suffixes=(".keras",), modules=("keras",), convert=convert)
