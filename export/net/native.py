"""A net that a framework's own Triton backend answers: its file, and the node that stands for it in graphs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from tristage.export.net.model import Ask, Examples, Net, NetInput
from tristage.export.net.outputs import NetOutput, join_answers, parts_of
from tristage.export.onnx_graph import ENGINE_DOMAIN, GraphBuilder

__all__ = ["NET_NODE", "NativeBackend", "NativeNet", "NativeTensor", "native_net", "native_of"]

NET_NODE = "Net"  # the operator, of ENGINE_DOMAIN, that stands for one


@dataclass(frozen=True)
class NativeTensor:
    """A tensor as the backend's model calls it: of shape [rows, width], or [rows] where it is flat."""

    name: str
    dtype: str
    width: int = 1
    flat: bool = False


@dataclass(frozen=True)
class NativeNet:
    """A file that a framework's own backend reads.

    Attributes:
        backend: a key of `tristage.export.net.backends.BACKENDS`.
        file: the file or folder, in the folder of large tables.
        inputs: what the model reads.
        outputs: what it answers.
    """

    backend: str
    file: str
    inputs: tuple[NativeTensor, ...]
    outputs: tuple[NativeTensor, ...]

    def to_json(self) -> str:
        """As text, for a node's attribute."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NativeNet:
        """What `to_json` wrote."""
        said = json.loads(text)
        tensors = {side: tuple(NativeTensor(**each) for each in said[side]) for side in ("inputs", "outputs")}
        return cls(said["backend"], said["file"], **tensors)


@dataclass(frozen=True)
class NativeBackend:
    """How nets are written for one of Triton's backends.

    Attributes:
        platform: what its configurations call its files.
        file: the one name of a file or folder that it looks for.
        frameworks: whose nets it takes.
        takes: those nets, in words.
        parameters: number of instances -> what its configurations say.
        write: (artifact, the step's name, folder that the file is written to, example rows where somebody gave any)
            -> the net.
        open: the file's path, and the net -> what asks it, as the backend would, in this process: arrays by the
            model's own names, answers in the order of its outputs.
    """

    platform: str
    file: str
    frameworks: tuple[str, ...]
    takes: str
    parameters: Callable[[int], Mapping[str, str]]
    write: Callable[[Any, str, Path, Examples | None], Net]
    open: Callable[[Path, NativeNet], Ask]


def native_net(step: str, native: NativeNet, inputs: Sequence[str], outputs: Sequence[str], ask: Ask) -> Net:
    """A net whose graph is one node, which the backend's model takes the place of, and what joins its answers.

    Args:
        step: the step's name, which the node has.
        native: the file.
        inputs: the framework's names of its inputs.
        outputs: and of its outputs; "" where one has none.
        ask: asks the framework itself.
    """
    graph = GraphBuilder()
    read = [graph.input(name, its.dtype, its.width) for name, its in zip(inputs, native.inputs, strict=True)]
    said = {"name": step, "net": native.to_json()}
    made = graph.add_many(NET_NODE, *read, outputs=len(native.outputs), domain=ENGINE_DOMAIN, **said)
    answered = tuple(
        NetOutput(name, None if its.flat else its.width, its.dtype)
        for name, its in zip(outputs, native.outputs, strict=True)
    )
    answers = []
    for number, part in enumerate(parts_of(answered)):
        joined = graph.concat([graph.cast(made[at], answered[at].dtype, part.dtype) for at in part.outputs])
        answers.append((f"answers{number or ''}", joined, part.dtype, len(part.positions)))
    return Net(
        model=graph.model(answers),
        inputs=tuple(
            NetInput(name, its.dtype, None if its.flat else its.width)
            for name, its in zip(inputs, native.inputs, strict=True)
        ),
        outputs=answered,
        predict=lambda rows: join_answers(ask(rows), answered),
        native=True,
    )


def native_of(node: onnx.NodeProto) -> NativeNet | None:
    """What a node stands for, where it stands for a net of a framework's own backend."""
    if node.domain != ENGINE_DOMAIN or node.op_type != NET_NODE:
        return None
    return NativeNet.from_json(next(its.s.decode() for its in node.attribute if its.name == "net"))
