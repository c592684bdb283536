"""TorchScript whose inputs somebody else names: it takes one dict of tensors, as Merlin Systems serves PyTorch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.net.model import Net, NetConverter, NetInput, net_from_onnx
from tristage.export.net.torch import first_line, quiet
from tristage.export.onnx_graph import OPSET

__all__ = ["TORCH_SCRIPT", "NamedTorchScript"]

_EXPORT = "save it with torch.export.save(torch.export.export(model.eval(), examples, dynamic_shapes=...)) as .pt2"


@dataclass(frozen=True)
class NamedTorchScript:
    """TorchScript that is called with a dict, and what the dict holds.

    Attributes:
        script: a torch.jit.ScriptModule, a torch.nn.Module that torch.jit.script takes, or the file of either's save.
        inputs: what the dict holds; a list input has a fixed width, or 0 for any.
    """

    script: Any
    inputs: tuple[NetInput, ...]


def convert(artifact: Any, what: str, tables: Path | None = None) -> Net:
    """Convert TorchScript through torch's exporter for it. Several outputs become columns side by side.

    Raises:
        ArtifactError: the file is not TorchScript, nothing says what its inputs are, or torch cannot export it.
    """
    import torch

    if not isinstance(artifact, NamedTorchScript):
        raise ArtifactError(f"{what}: TorchScript does not say what shapes its inputs have; {_EXPORT}")
    script = _open(artifact.script, what)
    names = [tensor.name for tensor in artifact.inputs]

    class ByPosition(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.script = script

        def forward(self, *tensors: Any) -> Any:
            answer = self.script(dict(zip(names, tensors, strict=True)))
            columns = [answer] if isinstance(answer, torch.Tensor) else list(answer)
            columns = [column.unsqueeze(1) if column.dim() == 1 else column for column in columns]
            return columns[0] if len(columns) == 1 else torch.cat(columns, 1)

    module = ByPosition().eval()
    examples = tuple(
        torch.zeros((2,) if tensor.width is None else (2, tensor.width or 2), dtype=getattr(torch, tensor.dtype))
        for tensor in artifact.inputs
    )
    dynamic = {tensor.name: {0: "rows", **({1: "any"} if tensor.width == 0 else {})} for tensor in artifact.inputs}
    buffer = io.BytesIO()
    try:
        with quiet(), torch.no_grad():
            torch.onnx.export(
                torch.jit.trace(module, examples, check_trace=False),
                examples,
                buffer,
                dynamo=False,  # the other exporter takes no TorchScript
                opset_version=OPSET,
                input_names=names,
                output_names=["answers"],
                dynamic_axes={**dynamic, "answers": {0: "rows"}},
            )
    except Exception as error:  # tracer and exporter raise many kinds
        raise ArtifactError(f"{what}: torch cannot write it as ONNX ({first_line(error)}); {_EXPORT}") from error

    def predict(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        with torch.no_grad():
            return np.asarray(module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names)).numpy())

    return net_from_onnx(onnx.load_from_string(buffer.getvalue()), what, predict, tables)


def _open(script: Any, what: str) -> Any:
    import torch

    try:
        with quiet():
            if isinstance(script, (str, Path)):
                return torch.jit.load(str(script), map_location="cpu").eval()
            return torch.jit.script(script.eval())
    except Exception as error:  # torch raises whatever its archive reader or its compiler met
        where = f"{script} is no TorchScript" if isinstance(script, (str, Path)) else "torch.jit.script refuses it"
        raise ArtifactError(f"{what}: {where} ({first_line(error)}); {_EXPORT}") from error


# the artifact is a class of this package, since TorchScript alone is not enough
TORCH_SCRIPT = NetConverter(framework="TorchScript", suffixes=(".pt",), modules=("tristage",), convert=convert)
