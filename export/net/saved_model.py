"""TensorFlow: a SavedModel's folder, or what tf.saved_model.load made of it; its serving signature is the net."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.net.model import Ask, Examples, Net, NetConverter, net_from_onnx
from tristage.export.net.tensorflow_errors import why_no_onnx
from tristage.export.net.variables import (
    Unreadable,
    is_large,
    named_tables,
    table_specs,
    take_tables,
    variables_as_inputs,
)

__all__ = ["SAVED_MODEL", "open_signature"]

_OPSET = 18  # the newest that tf2onnx 1.17 writes; `net_from_onnx` brings it up to date
_SIGNATURE = "serving_default"


def convert(artifact: Any, what: str, tables: Path | None = None, examples: Examples | None = None) -> Net:
    """Convert a SavedModel through tf2onnx. Its outputs come in the order of their names.

    Raises:
        ArtifactError: see `open_signature`; or tf2onnx cannot convert an operation.
    """
    import tf2onnx

    loaded, specs, predict = open_signature(artifact, what)
    signature = loaded.signatures[_SIGNATURE]
    outputs = sorted(signature.structured_outputs)
    model: onnx.ModelProto | None = None
    try:
        function, named, stored = _function(signature, specs, tables)
        model, _ = tf2onnx.convert.from_function(function, input_signature=named, opset=_OPSET)
        onnx.checker.check_model(model)  # tf2onnx leaves an operation in place that it does not know
    except Exception as error:  # tf2onnx raises many kinds
        raise ArtifactError(f"{what}: {why_no_onnx(error, model, ())}") from error
    take_tables(model, stored, tables)
    return net_from_onnx(model, what, predict, tables, outputs)


def open_signature(artifact: Any, what: str) -> tuple[Any, dict[str, Any], Ask]:
    """A SavedModel's folder, or what tf.saved_model.load made of it.

    Returns:
        What was loaded, the specs of its signature's inputs by name, and what asks it.

    Raises:
        ArtifactError: the folder is not a SavedModel, has no serving signature or one that reads text.
    """
    import tensorflow

    loaded = artifact
    if isinstance(artifact, Path):
        try:
            loaded = tensorflow.saved_model.load(str(artifact))
        except Exception as error:  # TensorFlow raises whatever its readers met
            raise ArtifactError(
                f"{what}: TensorFlow {tensorflow.__version__} cannot read {artifact} ({error})", path=artifact
            ) from error
    signature = getattr(loaded, "signatures", {}).get(_SIGNATURE)
    if signature is None:
        raise ArtifactError(
            f"{what}: the {type(loaded).__name__} has no signature {_SIGNATURE}; write it with Keras's "
            "model.export(folder), or tf.saved_model.save(model, folder, signatures=...)"
        )
    specs = dict(sorted(signature.structured_input_signature[1].items()))
    for name, spec in specs.items():
        if spec.dtype == tensorflow.string:
            raise ArtifactError(f"{what}: input {name} is text; a net reads numbers")
    outputs = sorted(signature.structured_outputs)

    def predict(inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        # through what was loaded, since a signature does not keep its variables alive
        answers = loaded.signatures[_SIGNATURE](**{name: tensorflow.constant(inputs[name]) for name in specs})
        return [np.asarray(answers[name]) for name in outputs]

    return loaded, specs, predict


def _function(
    signature: Any, specs: Mapping[str, Any], tables: Path | None
) -> tuple[Any, list[Any], Mapping[str, Any]]:
    """What tf2onnx is to convert, its inputs, and the variables that the first of them stand for."""
    import tensorflow

    inputs = [tensorflow.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()]
    if tables is not None and any(map(is_large, signature.variables)):
        with contextlib.suppress(Unreadable):
            graph, stands = variables_as_inputs(signature)
            large = {name: variable for name, variable in stands.items() if is_large(variable)}
            small = {name: variable.numpy() for name, variable in stands.items() if name not in large}
            stored = named_tables(list(large.values()))

            def of_graph(*values: Any) -> list[Any]:
                given = dict(zip((*large, *specs), values, strict=True))
                kept = {name: tensorflow.constant(value) for name, value in small.items()}
                places = dict(zip(specs, signature.inputs, strict=False))
                made: list[Any] = tensorflow.graph_util.import_graph_def(
                    graph,
                    {
                        **{f"{name}:0": value for name, value in {**kept, **given}.items() if name not in places},
                        **{place.name: given[name] for name, place in places.items()},
                    },
                    [tensor.name for tensor in signature.outputs],
                )
                return made

            named = table_specs(stored) + inputs
            return tensorflow.function(of_graph, input_signature=named), named, stored

    def whole(*values: Any) -> list[Any]:
        made = signature(**dict(zip(specs, values, strict=True)))
        return [made[name] for name in sorted(made)]

    return tensorflow.function(whole, input_signature=inputs), inputs, {}


SAVED_MODEL = NetConverter(
    framework="TensorFlow SavedModel",
    suffixes=(".savedmodel",),
    modules=("tensorflow",),
    convert=convert,
    marker="saved_model.pb",
)
