"""Where a stack is served: which Triton, which backends, which device."""

from __future__ import annotations

from dataclasses import dataclass

from tristage.errors import StackError

__all__ = ["TARGETS", "Target", "find_target"]


@dataclass(frozen=True)
class Target:
    """A kind of server.

    Attributes:
        name: as `tristage export --target` takes it.
        native: whether Triton's own backends answer: FIL forests, ONNX Runtime all else. Otherwise tristage's
            own does, or the runner in the Python backend.
        gpu: whether forests and nets lie on a GPU.
        layout: the layout that suits it best: a process for every step is cheap on cores, and dear on a GPU.
        about: what it is, in a few words.
    """

    name: str
    native: bool
    gpu: bool
    layout: str
    about: str

    @property
    def torch(self) -> bool:
        """Whether the runner computes on a GPU with torch."""
        return self.gpu and not self.native


TARGETS = {
    target.name: target
    for target in (
        Target("pip-cpu", False, False, "ensemble", "the pip wheel's tritonserver, on CPU cores"),
        Target("pip-gpu", False, True, "fused", "the pip wheel's tritonserver, and torch on a GPU"),
        Target("ngc-cpu", True, False, "ensemble", "NVIDIA's container 24.10, FIL and ONNX Runtime on CPU cores"),
        Target("ngc-gpu", True, True, "ensemble", "NVIDIA's container 24.10, FIL and ONNX Runtime on a GPU"),
    )
}


def find_target(name: str) -> Target:
    """The target of a name.

    Raises:
        StackError: there is none.
    """
    if name not in TARGETS:
        raise StackError(f"there is no target {name}; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]
