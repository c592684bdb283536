"""Keras 3 on TensorFlow: a model, or a .keras file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.net.model import Net, NetConverter, net_from_onnx
from tristage.export.tables import LARGE, externalize

__all__ = ["KERAS"]

_OPSET = 18  # the newest that tf2onnx 1.17 writes; `net_from_onnx` brings it up to date


def convert(artifact: Any, what: str, tables: Path | None = None) -> Net:
    """Convert a Keras model with named inputs through tf2onnx, which Keras's own exporter uses too.

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

    return net_from_onnx(_to_onnx(model, what, tables), what, predict, tables)


def _to_onnx(model: Any, what: str, tables: Path | None) -> onnx.ModelProto:
    """The model through tf2onnx. Large variables go in as inputs, so that TensorFlow never makes constants of them,
    and become the graph's tensors afterwards: Keras's own exporter takes a second for each million numbers.
    """
    import keras
    import tensorflow
    import tf2onnx

    if keras.backend.backend() != "tensorflow":
        raise ArtifactError(
            f"{what}: Keras runs on {keras.backend.backend()} here; save the model as .keras and export it with "
            "KERAS_BACKEND=tensorflow"
        )
    large = [] if tables is None else [v for v in model.variables if v.value.dtype.size * np.prod(v.shape) >= LARGE]
    stored = {f"tristage_table{number}": variable for number, variable in enumerate(large)}
    specs = [tensorflow.TensorSpec(variable.shape, variable.dtype, name=name) for name, variable in stored.items()]
    specs += [tensorflow.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in model.inputs]

    def answer(*tensors: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(large, tensors, strict=False))):
            return model(list(tensors[len(large) :]), training=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made, _ = tf2onnx.convert.from_function(
                tensorflow.function(answer, input_signature=specs), input_signature=specs, opset=_OPSET
            )
            onnx.checker.check_model(made)  # tf2onnx leaves an operation in place that it does not know
        except Exception as error:  # Keras, TensorFlow and tf2onnx raise many kinds
            raise ArtifactError(f"{what}: Keras cannot write it as ONNX ({error})") from error
    for value in [value for value in made.graph.input if value.name in stored]:
        own = memoryview(tensorflow.convert_to_tensor(stored[value.name].value))  # no copy, as np.asarray makes one
        made.graph.initializer.append(externalize(value.name, np.asarray(own), tables))
        made.graph.input.remove(value)
    return made


KERAS = NetConverter(framework="Keras", suffixes=(".keras",), modules=("keras",), convert=convert)
