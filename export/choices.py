"""How Triton is to run each model: what the stack says, what follows from the target, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tristage.errors import StackError
from tristage.export.net.native import NativeNet
from tristage.export.place import Checkpoint, PlacedModel
from tristage.serving.device import BUCKETS
from tristage.serving.workflow_file import WorkflowFile
from tristage.targets import Target
from tristage.triton_settings import Choice, TritonSettings

__all__ = ["MAX_WAITING", "Chosen", "backend_of", "choose", "choose_ensemble"]

MAX_WAITING = 1024
_SAID = "the stack says so"


@dataclass(frozen=True)
class Chosen:
    """All of Triton's settings of one model.

    Attributes:
        backend: Triton's name of who answers.
        gpu: whether instances are on the GPU.
        instances, preferred_batch, queue_delay_us, max_queue, warmup, accelerator, cuda_graphs, resources: as in
            `tristage.triton_settings.TritonSettings`.
        choices: the same, said to people.
    """

    backend: str
    gpu: bool = False
    instances: int = 1
    preferred_batch: tuple[int, ...] = ()
    queue_delay_us: int = 0
    max_queue: int | None = None
    warmup: tuple[int, ...] = ()
    accelerator: str | None = None
    cuda_graphs: bool = False
    resources: Mapping[str, int] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()


def choose(
    model: PlacedModel,
    max_batch: int,
    target: Target,
    said: TritonSettings,
    instances: int | None = None,
    *,
    sole: bool = False,
) -> Chosen:
    """Every setting of a model.

    Args:
        model: the model.
        max_batch: rows that one request may hold.
        target: where it is served.
        said: what the stack says.
        instances: of every model, unless the stack says otherwise of its step.
        sole: whether the stack is this one model.

    Raises:
        StackError: the stack says something that the model's backend does not do, or says two things of steps that
            are one model.
    """
    own = _of_steps(model, said)
    asked = {name: value for name, value in said.given().items() if name not in own} | own
    if instances is not None and "instances" not in own:
        asked["instances"] = instances
    count = asked.get("instances", 1)
    backend = backend_of(model, target, count)
    device = asked.pop("device", None)
    if device == "gpu" and not _can_gpu(model, target):
        if "device" in own:
            raise _not_here(model, "device: gpu", _device(model, target))
        device = None
    gpu = _default_gpu(model, target) if device is None else device == "gpu"
    torch = target.torch and gpu
    found = {
        "backend": (backend, "torch has the GPU in a process of its own" if torch else _BACKENDS[backend]),
        "device": ("GPU" if gpu else "CPU", _device(model, target) if device is None else _SAID),
        "instances": (count, "one keeps the GPU busy with large batches" if gpu else "one for a core; more on request"),
        "preferred_batch": ((), "requests that wait are joined, however many they are"),
        "queue_delay_us": (0, "waiting for others only adds to the time of an answer"),
        "max_queue": _max_queue(backend, sole),
        "warmup": ((), "NVTabular is asked for a row while it is loaded")
        if isinstance(model.graph, WorkflowFile)
        else _warmup(gpu, max_batch, BUCKETS if torch else ()),
        "accelerator": (None, "TensorRT answers otherwise by more than 1e-5, so it is used on request"),
        "cuda_graphs": (True, f"a call of at most {BUCKETS[-1]} rows is one launch instead of thousands")
        if torch
        else (False, _NO_GRAPHS.get(backend, "they are TensorRT's, and it is not used")),
        "resources": ({}, "nothing but its instances bounds what a model does side by side"),
    }
    if backend != "onnxruntime" or not gpu:
        found["accelerator"] = (None, "only ONNX Runtime on a GPU has one")
        if asked.get("accelerator") and "accelerator" in own:
            raise _not_here(model, "accelerator", f"{backend} on the {'GPU' if gpu else 'CPU'} has none")
        asked.pop("accelerator", None)
    if not asked.get("accelerator") and not torch:
        if asked.get("cuda_graphs") and "cuda_graphs" in own:
            raise _not_here(model, "cuda_graphs", "they are TensorRT's: give the step an accelerator")
        asked.pop("cuda_graphs", None)
    for name in ("preferred_batch", "warmup"):
        if any(rows > max_batch for rows in asked.get(name, ())):
            raise StackError(f"{name} is {list(asked[name])}; a request holds at most {max_batch} rows (max_batch)")
    found.update({name: (value, _SAID) for name, value in asked.items() if name in found and name != "instances"})
    if "instances" in asked:
        found["instances"] = (count, "asked for")
    values: dict[str, Any] = {name: value for name, (value, _) in found.items()}
    choices = tuple(Choice(name, _words(name, value), why) for name, (value, why) in found.items())
    del values["device"]
    return Chosen(**values, gpu=gpu, choices=choices)


def choose_ensemble(said: TritonSettings) -> tuple[bool, Choice]:
    """Whether the ensemble keeps answers for equal requests."""
    on = bool(said.response_cache)
    why = _SAID if said.response_cache is not None else "equal requests are rare, and looking one up costs every other"
    return on, Choice("response_cache", "on" if on else "off", why)


def backend_of(model: PlacedModel, target: Target, instances: int) -> str:
    """Triton's name of the backend that runs a model.

    Of tristage's models, one instance of each runs inside tritonserver (`tristage`). Several have a process each
    (`python`), since in one process they would wait for each other's turn in Python; and so has a workflow that
    NVTabular runs, whose pickle may import anything.
    """
    if isinstance(model.graph, Checkpoint):
        return "fil"
    if isinstance(model.graph, NativeNet):
        return model.graph.backend
    if isinstance(model.graph, WorkflowFile):
        return "python"
    if target.native:
        return "onnxruntime"
    return "tristage" if instances == 1 and not target.gpu else "python"


def _max_queue(backend: str, sole: bool) -> tuple[int | None, str]:
    if backend != "tristage":
        return None, "with a bound Triton 2.51 lets a request wait up to 500 ms at an idle model"
    if not sole:
        return None, "of a request that one model refuses while others compute, Triton 2.51 keeps the memory"
    return MAX_WAITING, "who comes behind so many waits longer than it is worth: it is told at once"


_BACKENDS = {
    "fil": "Triton's own backend of forests",
    "onnxruntime": "Triton's own backend of graphs",
    "pytorch": _SAID,
    "tensorflow": _SAID,
    "tristage": "a model inside tritonserver answers soonest",
    "python": "a process each: several instances would wait for each other in one, and NVTabular may import anything",
}
_NO_GRAPHS = {
    "fil": "the backend has none",
    "pytorch": "the backend has none",
    "tensorflow": "the backend has none",
    "tristage": "there is no GPU",
    "python": "there is no GPU, or NVTabular uses it",
}


def _device(model: PlacedModel, target: Target) -> str:
    if not target.gpu:
        return f"{target.name} has no GPU"
    if isinstance(model.graph, WorkflowFile):
        return (
            "cuDF, which PyPI has not in NVTabular's version" if target.torch else "NVTabular's frames are cuDF's there"
        )
    if target.torch:
        return "all but texts, indexes and stores of features"
    return "forests and nets" if model.on_gpu else "texts, and look-ups by them, cannot be on a GPU"


def _can_gpu(model: PlacedModel, target: Target) -> bool:
    return target.gpu and not (target.torch and isinstance(model.graph, WorkflowFile))


def _default_gpu(model: PlacedModel, target: Target) -> bool:
    return _can_gpu(model, target) and (target.torch or bool(model.on_gpu))


def _warmup(gpu: bool, max_batch: int, replayed: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Rows of the requests that a model answers before it is ready."""
    if replayed:
        sizes = {rows for rows in replayed if rows <= max_batch} | {max_batch}
        return tuple(sorted(sizes)), "kernels are compiled and calls captured at the first request of each size"
    if gpu:
        return _buckets(max_batch), "each size of batch has kernels of its own, found at its first request"
    return (), "on CPU cores it makes no difference to the first request that could be measured"


def _buckets(max_batch: int) -> tuple[int, ...]:
    """1, 8, 64, ... and the largest."""
    found = [1]
    while found[-1] * 8 < max_batch:
        found.append(found[-1] * 8)
    return tuple(sorted({*found, max_batch}))


def _of_steps(model: PlacedModel, said: TritonSettings) -> dict[str, Any]:
    """What the stack says of a model's steps, which have to agree where they are one model."""
    found: dict[str, tuple[Any, str]] = {}
    for step in model.steps:
        for name, value in (said.steps[step].given() if step in said.steps else {}).items():
            if name in found and found[name][0] != value:
                raise StackError(
                    f"triton says {name} {found[name][0]} of step {found[name][1]} and {value} of step {step}, which "
                    f"are one model, {model.name}; say the same of both, or choose the layout ensemble",
                    step=step,
                )
            found[name] = value, step
    return {name: value for name, (value, _) in found.items()}


def _not_here(model: PlacedModel, name: str, why: str) -> StackError:
    return StackError(f"triton says {name} of {', '.join(model.steps)}, but {why}; leave it out", step=model.steps[0])


def _words(name: str, value: Any) -> str:
    if name == "instances" or isinstance(value, str):
        return str(value)
    if name == "queue_delay_us":
        return f"{value} us"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return ", ".join(f"{count} x {resource}" for resource, count in value.items()) or "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
