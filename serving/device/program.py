"""A program whose graphs, forests and recurrences a GPU computes.

The files are those that are served on CPU cores. What holds texts, and what only runs on the host (an index, a store
of features), is asked there, and its tensors are brought to the device once; all else stays on the device until the
answers leave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tristage.fingerprint import DERIVED
from tristage.serving.device.graph import read_graph
from tristage.serving.device.operators import Faults
from tristage.serving.device.parts import DevicePart, HostPart, Place
from tristage.serving.device.stretch import Made, Stretch
from tristage.serving.device.tables import Budget
from tristage.serving.graph import GraphError, Tensor, derive
from tristage.serving.program import sides
from tristage.serving.program_file import PROGRAM_FILE, ProgramFile

__all__ = ["DeviceProgram", "memory_of"]

Tensors = dict[str, NDArray[Any]]

_SHARE = 0.6  # of a GPU's free memory that large tables may take; the rest is for what is computed


@dataclass(frozen=True)
class DeviceProgram:
    """An opened program; evaluated as a Graph is. For one thread.

    Attributes:
        inputs: what is asked of a caller.
        outputs: its answers.
        device: where it is computed.
        stages: stretches of the device's parts and parts of the host's, in turns.
        named: name of an answer -> the tensor it is.
        budget: where the large tables lie.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    device: torch.device
    stages: tuple[Stretch | HostPart, ...]
    named: Mapping[str, str]
    budget: Budget

    @classmethod
    def open(
        cls,
        folder: Path,
        device: str = "cuda",
        *,
        cuda_graphs: bool = True,
        memory: int | None = None,
        threads: int = 1,
    ) -> DeviceProgram:
        """Open `program.json`, or `graph.onnx`, and what it names.

        Args:
            folder: where they lie.
            device: torch's name of it.
            cuda_graphs: whether calls of few rows are captured and replayed, where all lies on a GPU.
            memory: bytes that large tables may take; a share of what is free if not said.
            threads: threads that the host's operators may use.

        Raises:
            GraphError: a file is missing or damaged, or there is no such device.
        """
        try:
            where = torch.device(device)
            torch.empty(1, device=where)
        except (RuntimeError, AssertionError) as error:
            raise GraphError(f"there is no device {device} here: {error}") from error
        said = ProgramFile(("graph.onnx",), {})
        if (folder / PROGRAM_FILE).is_file():
            try:
                said = ProgramFile.read(folder / PROGRAM_FILE)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise GraphError(f"{folder / PROGRAM_FILE} cannot be read: {error!r}") from error
        budget, faults = Budget(where, memory_of(where) if memory is None else memory), Faults()

        def inner(other: Path) -> DeviceProgram:
            return cls.open(other, device, cuda_graphs=cuda_graphs, memory=budget.bytes_left, threads=threads)

        place = Place(folder, where, budget, faults, threads, inner)
        parts = [opened for part in said.parts for opened in place.open(part)]
        named = said.named or {value.name: value.name for value in read_graph(folder / "graph.onnx").graph.output}
        stages = _stages(parts, set(named.values()), faults, cuda_graphs and where.type == "cuda" and not budget.hot)
        return cls(*sides(parts, named), where, stages, named, budget)

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """Evaluate the program; arguments, answers and errors are those of `Graph.run`."""
        known: Tensors = {}
        for tensor in self.inputs:
            if tensor.name not in tensors:
                raise GraphError(f"input {tensor.name} is missing")
            known[tensor.name] = tensors[tensor.name]
            if known[tensor.name].dtype != tensor.dtype:
                raise GraphError(f"input {tensor.name} must be {tensor.dtype}, not {known[tensor.name].dtype}")
        if not any(map(len, known.values())):
            return {tensor.name: np.empty((0, tensor.width), tensor.dtype) for tensor in self.outputs}
        with torch.inference_mode():
            return self._run(known)

    def _run(self, host: Tensors) -> Tensors:
        device: dict[str, torch.Tensor] = {}
        looked: list[Made] = []
        for stage in self.stages:
            if isinstance(stage, Stretch):
                for name in stage.reads:
                    if name not in device:
                        array = derive(name, host) if name.startswith(DERIVED) else host[name]
                        device[name] = self._put(array)
                looked.append(stage.run(device))
                device.update(looked[-1].tensors)
                continue
            for tensor in stage.inputs:
                if tensor.name not in host:
                    host[tensor.name] = device[tensor.name].cpu().numpy()
            host.update(stage.part.run(host))
        answers = {
            name: device[tensor].cpu().numpy() if tensor in device else host[tensor]
            for name, tensor in self.named.items()
        }
        wrong = sorted(set().union(*map(_wrong, looked)))
        if wrong:
            raise GraphError(f"the graph cannot be evaluated: {'; '.join(wrong)}")
        return answers

    def _put(self, array: NDArray[Any]) -> torch.Tensor:
        """Bring an array to the device; on its way to a GPU through pinned memory, which needs no waiting for."""
        kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
        held = torch.empty(array.shape, dtype=kind, pin_memory=self.device.type == "cuda")
        held.numpy()[...] = array
        return held.to(self.device, non_blocking=True)


def memory_of(device: torch.device) -> int:
    """Bytes of a device that large tables may take, by default."""
    if device.type != "cuda":
        return 1 << 62
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _SHARE)


def _wrong(made: Made) -> set[str]:
    if made.flags is None:
        return set()
    return {what for what, is_wrong in zip(made.asked, made.flags.cpu().tolist(), strict=True) if is_wrong}


def _stages(
    parts: Sequence[DevicePart | HostPart], answers: set[str], faults: Faults, replayed: bool
) -> tuple[Stretch | HostPart, ...]:
    """Parts of the device's with nothing of the host's between them, joined."""
    groups: list[list[DevicePart] | HostPart] = []
    for part in parts:
        if isinstance(part, HostPart):
            groups.append(part)
        elif groups and isinstance(groups[-1], list):
            groups[-1].append(part)
        else:
            groups.append([part])
    stages: list[Stretch | HostPart] = []
    for number, group in enumerate(groups):
        if isinstance(group, HostPart):
            stages.append(group)
            continue
        made = dict.fromkeys(tensor.name for part in group for tensor in part.outputs)
        read = dict.fromkeys(name for part in group for name in part.reads if name not in made)
        later = answers.union(*(_reads(other) for other in groups[number + 1 :]))
        stages.append(
            Stretch(tuple(group), tuple(read), tuple(name for name in made if name in later), faults, replayed)
        )
    return tuple(stages)


def _reads(group: list[DevicePart] | HostPart) -> set[str]:
    if isinstance(group, HostPart):
        return {tensor.name for tensor in group.inputs}
    return {name for part in group for name in part.reads}
