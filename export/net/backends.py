"""The frameworks' own Triton backends: on request a net is served by one of them, not by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError, StackError
from tristage.export.net.model import Ask, Net
from tristage.export.net.native import NativeBackend, NativeNet
from tristage.export.net.read import example_rows, find_converter
from tristage.export.net.saved_model_file import TENSORFLOW
from tristage.export.net.torch_script_file import PYTORCH
from tristage.serving.graph import Tensor

__all__ = ["BACKENDS", "OpenNet", "check_backend", "write_native"]

# by the names that `tristage.stack.NetStep.backend` takes
BACKENDS: Mapping[str, NativeBackend] = {"pytorch": PYTORCH, "tensorflow": TENSORFLOW}


def check_backend(step: str, backend: str, artifact: Any) -> None:
    """Refuse a backend of another framework than a step's net.

    Raises:
        StackError: says which nets it takes.
    """
    framework = find_converter(step, artifact).framework
    if framework not in BACKENDS[backend].frameworks:
        fits = [name for name, its in BACKENDS.items() if framework in its.frameworks]
        instead = f"write backend: {fits[0]}" if fits else "leave backend out: ONNX Runtime serves it"
        raise StackError(
            f"step {step}: Triton's {backend} backend takes {BACKENDS[backend].takes}, and its net is of {framework}; "
            f"{instead}",
            step=step,
        )


def write_native(step: str, backend: str, artifact: Any, folder: Path, examples: Any = None) -> Net:
    """Write a step's net for a framework's own backend.

    Args:
        step: the step's name.
        backend: one of BACKENDS.
        artifact: the net, or its file.
        folder: where the backend's file is written.
        examples: as `read_net` takes them.

    Raises:
        ArtifactError: it cannot be read or written so.
    """
    rows = example_rows(step, find_converter(step, artifact), examples)
    artifact = Path(artifact) if isinstance(artifact, str) else artifact
    return BACKENDS[backend].write(artifact, step, folder, rows)


@dataclass(frozen=True)
class OpenNet:
    """The file of a framework's own backend, read back and asked in this process; evaluated as a Graph is.

    Attributes:
        inputs: what it is given, [rows, width].
        outputs: what it makes, [rows, width].
        native: the file, and what its own tensors are.
        ask: asks it.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    native: NativeNet
    ask: Ask

    @classmethod
    def open(
        cls, native: NativeNet, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], path: Path, step: str
    ) -> OpenNet:
        """Read a file.

        Raises:
            ArtifactError: the framework cannot read what was written.
        """
        try:
            ask = BACKENDS[native.backend].open(path, native)
        except Exception as error:  # frameworks raise many kinds
            raise ArtifactError(f"step {step}: {native.file} cannot be read back ({error})") from error
        return cls(inputs, outputs, native, ask)

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer rows; {output: [rows, width]}."""
        rows = {
            own.name: tensors[given.name].reshape(-1) if own.flat else np.ascontiguousarray(tensors[given.name])
            for own, given in zip(self.native.inputs, self.inputs, strict=True)
        }
        return {
            made.name: answer.reshape(len(answer), -1)
            for made, answer in zip(self.outputs, self.ask(rows), strict=True)
        }
