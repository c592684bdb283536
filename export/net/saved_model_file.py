"""A SavedModel for Triton's tensorflow backend: the folder `model.savedmodel`, with the signature `serving_default`.

A folder is taken as it is. Of a Keras model the variables are written as a checkpoint: no constants are made of them,
and so a large table is written as fast as the disk takes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.net.keras import answer_names, named_answers, open_model
from tristage.export.net.model import Ask, Examples, Net
from tristage.export.net.native import NativeBackend, NativeNet, NativeTensor, native_net
from tristage.export.net.saved_model import open_signature
from tristage.export.net.tensorflow_errors import why_no_graph

__all__ = ["TENSORFLOW"]

_SIGNATURE = "serving_default"
_FINGERPRINT = "fingerprint.pb"  # a random number that TensorFlow knows a SavedModel by; nothing needs it


def write(artifact: Any, step: str, folder: Path, examples: Examples | None = None) -> Net:
    """Write a Keras model or its file, or a SavedModel.

    Raises:
        ArtifactError: it cannot be read, or a tensor has no shape that Triton could be told.
    """
    import tensorflow

    what, file = f"step {step}", f"net-{step}.savedmodel"
    path = folder / file
    names: list[str] | None = None
    if isinstance(artifact, (str, Path)) and Path(artifact).is_dir():
        loaded, _, ask = open_signature(Path(artifact), what)
        shutil.copytree(artifact, path)
    elif hasattr(artifact, "signatures"):
        loaded, _, ask = open_signature(artifact, what)
        tensorflow.saved_model.save(loaded, str(path), signatures={_SIGNATURE: loaded.signatures[_SIGNATURE]})
    else:
        model, ask = open_model(artifact, what)
        names = answer_names(model)
        loaded = _save(model, path, what)
    signature = loaded.signatures[_SIGNATURE]
    specs = signature.structured_input_signature[1]
    # Keras names its inputs in an order; a signature sorts them
    inputs = sorted(specs) if names is None else [tensor.name for tensor in model.inputs]
    made = signature.structured_outputs
    outputs = sorted(made) if names is None else [_output(at) for at in range(len(made))]
    native = NativeNet(
        "tensorflow",
        file,
        tuple(_tensor(name, specs[name], f"{what}: its input {name}") for name in inputs),
        tuple(_tensor(name, made[name], f"{what}: its output {name}") for name in outputs),
    )
    return native_net(step, native, inputs, outputs if names is None else names, ask)


def _output(at: int) -> str:
    return f"output_{at}"


def _save(model: Any, path: Path, what: str) -> Any:
    """Write a Keras model; returns it as it is read back."""
    import tensorflow

    def answer(*tensors: Any) -> Any:
        made = named_answers(model, model(list(tensors), training=False)).values()
        return {_output(at): tensor for at, tensor in enumerate(made)}

    specs = [tensorflow.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in model.inputs]
    served = tensorflow.Module()
    served.weights = [variable.value for variable in model.variables]
    served.answer = tensorflow.function(answer, input_signature=specs)
    try:
        served.answer.get_concrete_function()
    except Exception as error:  # what a layer raises
        raise ArtifactError(f"{what}: {why_no_graph(error, model)}") from error
    tensorflow.saved_model.save(served, str(path), signatures={_SIGNATURE: served.answer})
    (path / _FINGERPRINT).unlink(missing_ok=True)
    return tensorflow.saved_model.load(str(path))


def _tensor(name: str, spec: Any, what: str) -> NativeTensor:
    shape = None if spec.shape.rank is None else spec.shape.as_list()
    if shape is None or len(shape) not in (1, 2) or shape[0] is not None or (len(shape) == 2 and not shape[1]):
        raise ArtifactError(
            f"{what} has the shape {shape if shape is not None else 'unknown'}; Triton's tensorflow backend takes "
            "[rows] and [rows, n], with any number of rows (None) and a fixed n; export it so, or leave backend out"
        )
    return NativeTensor(name, str(spec.dtype.name), 1 if len(shape) == 1 else shape[1], len(shape) == 1)


def open_file(path: Path, native: NativeNet) -> Ask:
    """Read the folder back; ask its signature as Triton's backend does, by names."""
    import tensorflow

    loaded = tensorflow.saved_model.load(str(path))

    def ask(rows: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        given = {its.name: tensorflow.constant(rows[its.name]) for its in native.inputs}
        answers = loaded.signatures[_SIGNATURE](**given)
        return [np.asarray(answers[its.name]) for its in native.outputs]

    return ask


def _parameters(instances: int) -> dict[str, str]:
    """Threads of its own for each model, one an instance; instances share the variables."""
    return {
        "TF_NUM_INTRA_THREADS": "1",
        "TF_NUM_INTER_THREADS": "1",
        "TF_USE_PER_SESSION_THREADS": "1",
        "MAX_SESSION_SHARE_COUNT": str(instances),
    }


TENSORFLOW = NativeBackend(
    platform="tensorflow_savedmodel",
    file="model.savedmodel",
    frameworks=("Keras", "TensorFlow SavedModel"),
    takes="Keras models and TensorFlow SavedModels",
    parameters=_parameters,
    write=write,
    open=open_file,
)
