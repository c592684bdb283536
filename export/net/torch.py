"""PyTorch: an ExportedProgram, or the .pt2 file that torch.export.save wrote."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.net.model import Net, NetConverter, net_from_onnx
from tristage.export.onnx_graph import OPSET
from tristage.export.tables import LARGE, store

__all__ = ["TORCH", "first_line", "quiet"]


def convert(artifact: Any, what: str, tables: Path | None = None) -> Net:
    """Convert an ExportedProgram through torch's own ONNX exporter.

    Raises:
        ArtifactError: the file is missing or not a .pt2, the batch is not dynamic, or torch cannot export an operator.
    """
    import torch

    if isinstance(artifact, Path):
        try:
            with quiet():
                program = torch.export.load(artifact)
        except Exception as error:  # torch raises whatever its archive reader met
            raise ArtifactError(
                f"{what}: torch {torch.__version__} cannot read {artifact} ({first_line(error)}); "
                "write it with torch.export.save",
                path=artifact,
            ) from error
    elif isinstance(artifact, torch.export.ExportedProgram):
        program = artifact
    else:
        raise ArtifactError(
            f"{what}: a {type(artifact).__name__} has no example inputs; give "
            "torch.export.export(model.eval(), examples, dynamic_shapes=...) instead"
        )
    _check_dynamic(program, what)
    _check_evaluation(program, what)
    try:
        with quiet():
            exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, optimize=True)
    except Exception as error:  # the exporter raises many kinds
        raise ArtifactError(f"{what}: torch cannot write it as ONNX ({first_line(error)})") from error
    assert exported is not None
    if tables is not None:
        _store_tables(exported.model, tables)
    names = program.graph_signature.user_inputs
    module = program.module()

    def predict(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        with torch.inference_mode():
            tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names]
            arguments, keywords = torch.utils._pytree.tree_unflatten(tensors, program.call_spec.in_spec)
            answer = module(*arguments, **keywords)
        return np.asarray(answer.numpy())

    return net_from_onnx(exported.model_proto, what, predict, tables)


def _store_tables(model: Any, tables: Path) -> None:
    """Write large tensors to files, straight from torch's memory: they are never in a protobuf."""
    import onnx_ir

    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= LARGE:
            file = store(tensor.numpy(), tables)
            value.const_value = onnx_ir.ExternalTensor(
                file, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=tensor.name, base_dir=tables
            )


def _check_dynamic(program: Any, what: str) -> None:
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            rows = node.meta["val"].shape[0]
            if isinstance(rows, int):
                raise ArtifactError(
                    f"{what}: its input {node.name} takes exactly {rows} rows; export it with a dynamic batch: "
                    "dynamic_shapes={..: {0: torch.export.Dim('rows')}}"
                )


def _check_evaluation(program: Any, what: str) -> None:
    """Refuse a program whose answers hang on chance, or on who else is in the batch."""
    for node in program.graph.nodes:
        if node.op != "call_function" or not any(word in str(node.target) for word in ("dropout", "batch_norm")):
            continue
        names = [argument.name for argument in node.target._schema.arguments]
        arguments = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if arguments.get("train") is True or arguments.get("training") is True:
            raise ArtifactError(
                f"{what}: it was exported in training mode ({node.target}); call torch.export.export(model.eval(), ...)"
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch.export prints progress and warns about its own internals; errors still come as exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    # torch looks for OpenAI's triton, whose LLVM ends a process that has loaded TensorFlow's; ONNX needs neither
    blocked = "tensorflow" in sys.modules and "triton" not in sys.modules
    if blocked:
        sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if blocked:
            del sys.modules["triton"]


def first_line(error: Exception) -> str:
    """The first line of an error that says anything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


TORCH = NetConverter(framework="PyTorch", suffixes=(".pt2",), modules=("torch",), convert=convert)
