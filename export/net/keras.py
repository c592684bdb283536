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
from tristage.export.net.model import Ask, Examples, Net, NetConverter, net_from_onnx
from tristage.export.net.outputs import distinct
from tristage.export.net.tensorflow_errors import why_no_graph, why_no_onnx
from tristage.export.net.variables import is_large, named_tables, table_specs, take_tables

__all__ = ["KERAS", "answer_names", "named_answers", "open_model"]

_OPSET = 18  # the newest that tf2onnx 1.17 writes; `net_from_onnx` brings it up to date


def convert(artifact: Any, what: str, tables: Path | None = None, examples: Examples | None = None) -> Net:
    """Convert a Keras model with named inputs through tf2onnx, which Keras's own exporter uses too.

    Raises:
        ArtifactError: see `open_model`; or a layer cannot be exported, which the message names.
    """
    model, predict = open_model(artifact, what)
    return net_from_onnx(_to_onnx(model, what, tables), what, predict, tables, answer_names(model))


def open_model(artifact: Any, what: str) -> tuple[Any, Ask]:
    """A Keras model, or its file, and what asks it.

    Raises:
        ArtifactError: the file is missing or not Keras's, its inputs are not defined or are text, or Keras does not run
            on TensorFlow.
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
    for tensor in model.inputs:
        if tensor.dtype == "string":
            raise ArtifactError(f"{what}: input {tensor.name} is text; a net reads numbers")
        if tensor.shape[0] is not None:
            raise ArtifactError(
                f"{what}: its input {tensor.name} takes exactly {tensor.shape[0]} rows; build it from keras.Input "
                "without a batch size"
            )
    if keras.backend.backend() != "tensorflow":
        raise ArtifactError(
            f"{what}: Keras runs on {keras.backend.backend()} here; save the model as .keras and export it with "
            "KERAS_BACKEND=tensorflow"
        )
    inputs = [tensor.name for tensor in model.inputs]

    def predict(rows: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        made = model([rows[name] for name in inputs], training=False)
        return [np.asarray(answer) for answer in named_answers(model, made).values()]

    return model, predict


def answer_names(model: Any) -> list[str]:
    """The names of a model's answers; "" of a single one."""
    return [""] if len(model.outputs) == 1 else list(named_answers(model, model.output))


def named_answers(model: Any, answers: Any) -> dict[str, Any]:
    """A model's answers by name: a dict's keys, or the names of the layers that make them."""
    if isinstance(answers, Mapping):
        return dict(answers)
    if not isinstance(answers, (list, tuple)):
        return {"": answers}
    return dict(zip(distinct(model.output_names), answers, strict=True))


def _to_onnx(model: Any, what: str, tables: Path | None) -> onnx.ModelProto:
    """The model through tf2onnx. Large variables go in as inputs, so that TensorFlow never makes constants of them,
    and become the graph's tensors afterwards: Keras's own exporter takes a second for each million numbers.
    """
    import keras
    import tensorflow
    import tf2onnx

    large = [] if tables is None else [variable for variable in model.variables if is_large(variable.value)]
    stored = named_tables([variable.value for variable in large])
    specs = table_specs(stored)
    specs += [tensorflow.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in model.inputs]

    def answer(*tensors: Any) -> Any:
        for tensor, variable in zip(tensors, large, strict=False):
            tensor.set_shape(variable.shape)
        with keras.StatelessScope(state_mapping=list(zip(large, tensors, strict=False))):
            return list(named_answers(model, model(list(tensors[len(large) :]), training=False)).values())

    function = tensorflow.function(answer, input_signature=specs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function.get_concrete_function()
        except Exception as error:  # what a layer raises
            raise ArtifactError(f"{what}: {why_no_graph(error, model)}") from error
        made: onnx.ModelProto | None = None
        try:
            made, _ = tf2onnx.convert.from_function(function, input_signature=specs, opset=_OPSET)
            onnx.checker.check_model(made)  # tf2onnx leaves an operation in place that it does not know
        except Exception as error:  # TensorFlow and tf2onnx raise many kinds
            layers = [layer.name for layer in model._flatten_layers()]
            raise ArtifactError(f"{what}: {why_no_onnx(error, made, layers)}") from error
    take_tables(made, stored, tables)
    return made


KERAS = NetConverter(framework="Keras", suffixes=(".keras",), modules=("keras",), convert=convert)
