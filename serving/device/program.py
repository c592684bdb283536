"""A program whose graphs, forests and recurrences a GPU computes.

The files are those that are served on CPU cores. What holds texts, and what only runs on the host (an index, a store
of features), is asked there, and its tensors are brought to the device once; all else stays on the device until the
answers leave it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from tristage.serving.graph import GraphError, Tensor, derive, given_to
from tristage.serving.program import sides
from tristage.serving.program_file import PROGRAM_FILE, ProgramFile

__all__ = ["DeviceProgram", "memory_of"]

Tensors = dict[str, NDArray[Any]]

_AT_ONCE = 16_384  # rows of a large call that go together: texts of the next are read while the device computes
_SHARE = 0.6  # of a GPU's free memory that large tables may take; the rest is for what is computed


@dataclass(frozen=True)
class Begun:
    """Answers that were asked for.

    Attributes:
        host: those that the host has.
        device: those that the device has, or will have.
        looked: what may be wrong in rows.
    """

    host: Tensors
    device: Mapping[str, torch.Tensor]
    looked: tuple[Made, ...]


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
            if where.type == "cuda" and where.index is not None:
                torch.cuda.set_device(where)  # kernels run on the current one
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
        known = given_to(self.inputs, tensors)
        if not any(map(len, known.values())):
            return {tensor.name: np.empty((0, tensor.width), tensor.dtype) for tensor in self.outputs}
        rows = max(map(len, known.values()))
        with torch.inference_mode():
            begun = [
                self._begin({name: array[start : start + _AT_ONCE] for name, array in known.items()})
                for start in range(0, rows, _AT_ONCE)
            ]
            ended = list(map(self._end, begun))
        if len(ended) == 1:
            return ended[0]
        return {tensor.name: np.concatenate([part[tensor.name] for part in ended]) for tensor in self.outputs}

    def times(
        self, tensors: Mapping[str, NDArray[Any]], clock: Callable[[Callable[[], Any]], float]
    ) -> dict[str, float]:
        """Seconds of every part by itself, in order; one that is there twice has a number.

        Args:
            tensors: as `run` takes them, of one row at least.
            clock: runs a function some times and answers the seconds of once.
        """
        host, device, found = dict(tensors), dict[str, torch.Tensor](), dict[str, float]()
        with torch.inference_mode():
            for stage in self.stages:
                if isinstance(stage, HostPart):
                    its = {tensor.name: self._on_host(tensor.name, host, device) for tensor in stage.inputs}
                    for _ in range(2):  # the second time nothing is new to it
                        began = time.perf_counter()
                        host.update(stage.part.run(its))
                        took = time.perf_counter() - began
                    found[_unused(stage.name, found)] = took
                    continue
                for name in stage.reads:
                    device[name] = self._on_device(name, host, device)
                for part in stage.parts:
                    found[_unused(part.name, found)] = clock(partial(part.run, device))
                    device.update(part.run(device))
                stage.faults.take()
        return found

    def _begin(self, host: Tensors) -> Begun:
        """Ask for answers; where no part is the host's but the first, nothing waits for the device."""
        device: dict[str, torch.Tensor] = {}
        looked: list[Made] = []
        for stage in self.stages:
            if isinstance(stage, Stretch):
                for name in stage.reads:
                    device[name] = self._on_device(name, host, device)
                looked.append(stage.run(device))
                device.update(looked[-1].tensors)
                continue
            for tensor in stage.inputs:
                host[tensor.name] = self._on_host(tensor.name, host, device)
            host.update(stage.part.run(host))
        answers = set(self.named.values())
        return Begun(
            {name: array for name, array in host.items() if name in answers},
            {name: tensor for name, tensor in device.items() if name in answers},
            tuple(looked),
        )

    def _end(self, begun: Begun) -> Tensors:
        """Wait for answers, and for what was wrong in their rows."""
        answers = {name: self._on_host(tensor, begun.host, begun.device) for name, tensor in self.named.items()}
        wrong = sorted(set[str]().union(*map(_wrong, begun.looked)))
        if wrong:
            raise GraphError(f"the graph cannot be evaluated: {'; '.join(wrong)}")
        return answers

    def _on_host(self, name: str, host: Tensors, device: Mapping[str, torch.Tensor]) -> NDArray[Any]:
        return host[name] if name in host else device[name].cpu().numpy()

    def _on_device(self, name: str, host: Tensors, device: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if name in device:
            return device[name]
        return self._put(derive(name, host) if name.startswith(DERIVED) else host[name])

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


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    others = sum(each == name or each.startswith(f"{name}, ") for each in taken)
    return f"{name}, {others + 1}" if others else name


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
