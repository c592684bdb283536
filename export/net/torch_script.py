"""TorchScript: a ScriptModule or the .pt file of its save, with example rows; or called with a dict, as Merlin does."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.net.model import Examples, Net, NetConverter, NetInput, net_from_onnx
from tristage.export.net.top_k import nan_above_all
from tristage.export.net.torch import answer_names, flat_answers, quiet
from tristage.export.net.torch_errors import first_line
from tristage.export.onnx_graph import OPSET

__all__ = ["TORCH_SCRIPT", "Called", "NamedTorchScript", "by_position"]

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


@dataclass(frozen=True)
class Called:
    """TorchScript that is called by position.

    Attributes:
        module: takes the inputs in order, and answers a tuple.
        inputs: what it reads.
        given: some rows of every input.
        raw: what the script itself answers for inputs by name.
    """

    module: Any
    inputs: tuple[NetInput, ...]
    given: tuple[Any, ...]
    raw: Callable[[Mapping[str, Any]], Any]

    def answered(self) -> list[str]:
        """The names of its answers, "" where they have none; raises what the script raises."""
        named = dict(zip([tensor.name for tensor in self.inputs], self.given, strict=True))
        return answer_names(self.raw(named))

    def predict(self, rows: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Ask it."""
        import torch

        with torch.no_grad():
            made = self.module(*(torch.from_numpy(np.ascontiguousarray(rows[each.name])) for each in self.inputs))
        return [tensor.detach().numpy() for tensor in made]


def by_position(artifact: Any, what: str, examples: Examples | None) -> Called:
    """Open TorchScript, so that it is called by position. Its dict, or its arguments' names, name its inputs.

    Raises:
        ArtifactError: the file is not TorchScript, or nothing says what its inputs are.
    """
    import torch

    as_dict = isinstance(artifact, NamedTorchScript)
    script = _open(artifact.script if as_dict else artifact, what)
    inputs = artifact.inputs if as_dict else _inputs(script, examples, what)
    names = [tensor.name for tensor in inputs]

    class ByPosition(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.script = script

        def forward(self, *tensors: Any) -> Any:
            named = dict(zip(names, tensors, strict=True))
            return tuple(flat_answers(self.script(named) if as_dict else self.script(**named)))

    def raw(named: Mapping[str, Any]) -> Any:
        # a dict's answers are known by their places, as Merlin knows them
        return tuple(flat_answers(script(named))) if as_dict else script(**named)

    if examples is None:
        given = [
            torch.zeros((2,) if tensor.width is None else (2, tensor.width or 2), dtype=getattr(torch, tensor.dtype))
            for tensor in inputs
        ]
    else:
        given = [torch.from_numpy(np.ascontiguousarray(examples[name])) for name in names]
    return Called(ByPosition().eval(), inputs, tuple(given), raw)


def convert(artifact: Any, what: str, tables: Path | None = None, examples: Examples | None = None) -> Net:
    """Convert TorchScript through torch's exporter for it.

    Raises:
        ArtifactError: the file is not TorchScript, nothing says what its inputs are, or torch cannot export it.
    """
    import torch

    called = by_position(artifact, what, examples)
    dynamic = {tensor.name: {0: "rows", **({1: "any"} if tensor.width == 0 else {})} for tensor in called.inputs}
    buffer = io.BytesIO()
    try:
        with quiet(), torch.no_grad():
            answered = called.answered()
            outputs = [f"answer{number}" for number in range(len(answered))]
            torch.onnx.export(
                torch.jit.trace(called.module, called.given, check_trace=False),
                called.given,
                buffer,
                dynamo=False,  # the other exporter takes no TorchScript
                opset_version=OPSET,
                input_names=[tensor.name for tensor in called.inputs],
                output_names=outputs,
                dynamic_axes={**dynamic, **{output: {0: "rows"} for output in outputs}},
            )
    except Exception as error:  # tracer and exporter raise many kinds
        raise ArtifactError(f"{what}: torch cannot write it as ONNX ({first_line(error)}); {_EXPORT}") from error
    model = onnx.load_from_string(buffer.getvalue())
    return nan_above_all(net_from_onnx(model, what, called.predict, tables, answered))


def _inputs(script: Any, examples: Examples | None, what: str) -> tuple[NetInput, ...]:
    """What a script reads: its arguments' names, and its examples' shapes."""
    arguments = [argument.name for argument in script.forward.schema.arguments[1:]]
    if examples is None:
        raise ArtifactError(
            f"{what}: TorchScript does not say what shapes its inputs have; give the step examples, some rows of "
            f"{', '.join(arguments)}; or {_EXPORT}"
        )
    if sorted(examples) != sorted(arguments):
        raise ArtifactError(f"{what}: its examples are {', '.join(examples)}; its forward takes {', '.join(arguments)}")
    return tuple(
        NetInput(name, str(examples[name].dtype), None if examples[name].ndim == 1 else examples[name].shape[1])
        for name in arguments
    )


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


# in memory TorchScript is of torch, and its converter hands it on; with its inputs' names it is of this package
TORCH_SCRIPT = NetConverter(
    framework="TorchScript", suffixes=(".pt", ".pth"), modules=("tristage",), convert=convert, by_example=True
)
