"""The parts of a program, each where it is computed: on the device if that can be, else on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from tristage.serving.candidates import Candidates
from tristage.serving.device.forest import DeviceForest
from tristage.serving.device.graph import DeviceGraph, read_graph
from tristage.serving.device.operators import Faults, Unsupported
from tristage.serving.device.recurrence import DeviceRecurrence
from tristage.serving.device.tables import Budget
from tristage.serving.device.texts import cut_texts, open_model
from tristage.serving.forest import ForestError
from tristage.serving.graph import GraphError, Runnable, Tensor
from tristage.serving.program import OpenPart, Sided, asked_of_forest, made_by_forest, open_part
from tristage.serving.program_file import CandidatesCall, ColumnsCall, ForestCall, Part, RecurrenceCall

__all__ = ["AskedForest", "DevicePart", "HostPart", "Place"]

_ENGINE = "tristage"  # whose packed forests a device reads


class DevicePart(Sided, Protocol):
    """What computes tensors of tensors on a device."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors that it reads; of a text's fingerprint, where `inputs` names the text, the fingerprint."""

    def run(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute them; nothing waits for the device."""


@dataclass(frozen=True)
class AskedForest:
    """A forest that is asked between two graphs."""

    call: ForestCall
    forest: DeviceForest

    @property
    def name(self) -> str:
        """The step's."""
        return self.call.step

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The rows, and their groups where groups have forests of their own."""
        return asked_of_forest(self.call, self.forest.features)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The answers."""
        return made_by_forest(self.call, self.forest.outputs)

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of its inputs."""
        return tuple(tensor.name for tensor in self.inputs)

    def run(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Answer rows; nothing waits for the device."""
        group = None if self.call.group is None else tensors[self.call.group].reshape(-1)
        return {self.call.output: self.forest.predict(tensors[self.call.rows], group)}


@dataclass(frozen=True)
class HostPart:
    """A part that the host computes.

    Attributes:
        name: what people call it.
        part: what computes it.
        why: why the device does not.
    """

    name: str
    part: OpenPart
    why: str

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What it reads."""
        return self.part.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What it makes."""
        return self.part.outputs


@dataclass(frozen=True)
class Place:
    """Where a program's parts are opened.

    Attributes:
        folder: the program's.
        device: where they are to be computed.
        budget: places large tables.
        faults: takes what is wrong in rows.
        threads: threads that the host's operators may use.
        open_program: opens another program on the same device.
    """

    folder: Path
    device: torch.device
    budget: Budget
    faults: Faults
    threads: int
    open_program: Callable[[Path], Runnable]

    def open(self, part: Part) -> list[DevicePart | HostPart]:
        """Open a part where it can be computed: whole, or what depends on texts on the host, and then the rest.

        Raises:
            GraphError: a file is missing or damaged.
        """
        try:
            match part:
                case str(file) | ColumnsCall(graph=file):
                    return self._graph(file, part)
                case RecurrenceCall():
                    return [DeviceRecurrence.open(self.folder, part, self.budget.place, self.device, self.faults)]
                case ForestCall():
                    packed = [choice.file for choice in part.engines if choice.engine == _ENGINE]
                    if packed:
                        return [AskedForest(part, DeviceForest.open(self.folder / packed[-1], self.device))]
                    return [self._host(part.step, part, "it is not packed for tristage's engine")]
                case CandidatesCall():
                    inner = self.open_program(self.folder / part.candidates)
                    return [
                        HostPart(
                            part.step,
                            Candidates(inner, part),
                            "candidates are laid out by the host, which asks the GPU about them",
                        )
                    ]
        except ForestError as error:
            raise GraphError(str(error)) from error
        return [self._host(part.step, part, "indexes, tables and stores of features are asked on the host")]

    def _graph(self, file: str, part: str | ColumnsCall) -> list[DevicePart | HostPart]:
        model = read_graph(self.folder / file)
        try:
            return [DeviceGraph.of(file, model, self.folder, self.device, self.budget.place, self.faults)]
        except Unsupported as error:
            why = str(error)
        try:
            cut = cut_texts(model)
            if cut is not None:
                texts, rest = cut
                computed = DeviceGraph.of(file, rest, self.folder, self.device, self.budget.place, self.faults)
                return [HostPart(f"texts of {file}", open_model(texts, self.threads), why), computed]
        except Unsupported as error:
            why = str(error)
        return [self._host(file, part, why)]

    def _host(self, name: str, part: Part, why: str) -> HostPart:
        return HostPart(name, open_part(self.folder, part, self.threads), why)
