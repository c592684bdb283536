"""Where the parts of a model on a GPU are computed: there, or on the host, and then why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tristage.export.config import read_configs

__all__ = ["DevicePart", "device_parts"]


@dataclass(frozen=True)
class DevicePart:
    """A part of a model.

    Attributes:
        model: the Triton model's name.
        name: what the part is called: a step, or the file of a graph.
        device: "GPU" or "CPU".
        why: why the CPU computes it; "" on a GPU.
    """

    model: str
    name: str
    device: str
    why: str


def device_parts(repository: Path, stack: str) -> list[DevicePart]:
    """The parts of every model that torch computes on a GPU, in their order; no GPU is needed to ask.

    Raises:
        RepositoryError: a configuration is missing or damaged.
        GraphError: a model cannot be opened.
        ModuleNotFoundError: torch is not installed.
    """
    found: list[DevicePart] = []
    for model, config in read_configs(repository, stack):
        if "device" not in config.parameters:
            continue
        from tristage.serving.device.parts import HostPart
        from tristage.serving.device.program import DeviceProgram

        for stage in DeviceProgram.open(repository / model / "1", "cpu").stages:
            if isinstance(stage, HostPart):
                found.append(DevicePart(model, stage.name, "CPU", stage.why))
            else:
                found += [DevicePart(model, part.name, "GPU", "") for part in stage.parts]
    return found
