"""What a stack says of how Triton runs its models; the exporter chooses what it leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from tristage.errors import StackError

__all__ = ["ACCELERATORS", "DEVICES", "Choice", "TritonSettings"]

ACCELERATORS = ("tensorrt-fp32", "tensorrt-fp16")
DEVICES = ("cpu", "gpu")
_LEAST = {"instances": 1, "queue_delay_us": 0, "max_queue": 1}
_WHOLE = ("response_cache", "steps")  # of the whole stack, never of one step


@dataclass(frozen=True)
class Choice:
    """One setting of a model as it was written, in words, and why it is so."""

    setting: str
    value: str
    why: str


@dataclass(frozen=True)
class TritonSettings:
    """Settings of Triton's models, in the words of its model configuration; None leaves one to the exporter.

    Attributes:
        device: one of DEVICES, where a model answers; a GPU on the targets that have one only.
        instances: copies of a model that answer side by side.
        preferred_batch: rows that the batcher tries to join requests to; () for none, as many as wait.
        queue_delay_us: microseconds that a request may wait for others to be joined with.
        max_queue: requests that may wait for a model; more are refused.
        warmup: rows of the made-up requests, one each, that a model answers before it is ready; () for none.
        accelerator: one of ACCELERATORS, on `ngc-gpu`: ONNX Runtime hands the graph to TensorRT, at that precision.
        cuda_graphs: whether TensorRT replays its work as a CUDA graph; with an accelerator only.
        resources: name -> how many of Triton's rate limiter's resources an instance takes while it answers.
        response_cache: whether the ensemble keeps answers and gives them to equal requests; of the whole stack.
        steps: step -> settings of its models, which go before those of the whole stack.

    Raises:
        StackError: a setting has a value that it cannot have.
    """

    device: str | None = None
    instances: int | None = None
    preferred_batch: tuple[int, ...] | None = None
    queue_delay_us: int | None = None
    max_queue: int | None = None
    warmup: tuple[int, ...] | None = None
    accelerator: str | None = None
    cuda_graphs: bool | None = None
    resources: Mapping[str, int] | None = None
    response_cache: bool | None = None
    steps: Mapping[str, TritonSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not _whole(value, least):
                raise StackError(f"{name} is {value!r}; give a whole number of at least {least}")
        for name in ("preferred_batch", "warmup"):
            value = getattr(self, name)
            if value is not None:
                if not isinstance(value, (list, tuple)) or not all(_whole(rows, 1) for rows in value):
                    raise StackError(f"{name} is {value!r}; give numbers of rows, such as [1, 64], or [] for none")
                object.__setattr__(self, name, tuple(sorted(set(value))))
        if self.device is not None and self.device not in DEVICES:
            raise StackError(f"there is no device {self.device!r}; choose one of {', '.join(DEVICES)}")
        if self.accelerator is not None and self.accelerator not in ACCELERATORS:
            raise StackError(f"there is no accelerator {self.accelerator!r}; choose one of {', '.join(ACCELERATORS)}")
        for name in ("cuda_graphs", "response_cache"):
            if getattr(self, name) not in (None, True, False):
                raise StackError(f"{name} is {getattr(self, name)!r}; give true or false")
        if self.resources is not None:
            if not isinstance(self.resources, Mapping) or not all(
                _whole(count, 1) for count in self.resources.values()
            ):
                raise StackError(f"resources is {self.resources!r}; give names and whole numbers, such as {{gpu: 1}}")
            object.__setattr__(self, "resources", MappingProxyType(dict(self.resources)))
        object.__setattr__(self, "steps", MappingProxyType(dict(self.steps)))
        for step, its in self.steps.items():
            for name in _WHOLE:
                if getattr(its, name):
                    raise StackError(f"{name} is a setting of the whole stack; step {step} cannot have it")

    def given(self) -> dict[str, Any]:
        """The settings that were given a value, those of steps left out."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "steps"}
        return {name: value for name, value in values.items() if value is not None}


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
