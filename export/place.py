"""lowered steps -> Triton models: which tensors pass between them, and each model's graph.

In the layout `ensemble` every step is a Triton model of its own. A workflow emits one packed tensor for every set of
columns that somebody reads together; a model emits its answers in one tensor, and its reader picks from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from tristage.columns import Column, Signature
from tristage.errors import StackError
from tristage.export.forest import ForestSet
from tristage.export.forest.to_onnx import add_forests
from tristage.export.lower import Feed, LoweredStack, LoweredStep, Mean, Source, Workflow
from tristage.export.net import Net
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.values import pack

__all__ = ["PlacedModel", "Placement", "Tensor", "place"]


@dataclass(frozen=True)
class Tensor:
    """A tensor between Triton models, of shape [rows, width]."""

    name: str
    dtype: str
    width: int


@dataclass(frozen=True)
class PlacedModel:
    """One Triton model: a step's graph and its tensors, whose names are the ensemble's.

    Attributes:
        name: the Triton model's name.
        step: the step it computes.
        graph: the ONNX model.
        inputs: the tensors it reads.
        outputs: the tensors it emits.
        columns: output tensor -> the step's columns that lie side by side in it.
    """

    name: str
    step: str
    graph: onnx.ModelProto
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    columns: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Placement:
    """A stack laid out as Triton models, each after those it reads."""

    signature: Signature
    models: tuple[PlacedModel, ...]


@dataclass(frozen=True)
class _Port:
    """A tensor that a step emits: some of its columns, in order, in one dtype."""

    tensor: Tensor
    positions: tuple[int, ...]


def place(lowered: LoweredStack, max_batch: int) -> Placement:
    """Lay a lowered stack out for the target `pip-cpu`, layout `ensemble`.

    Args:
        lowered: the stack.
        max_batch: rows that one request may hold.

    Raises:
        StackError: an output has the name of a raw column.
    """
    stack = lowered.stack.name
    ports = _ports(lowered)
    models = []
    inputs: dict[str, Column] = {}
    for step in lowered.steps:
        graph = _graph(step, ports)
        names = [value.name for value in graph.graph.input]
        raw = {
            source.column.name: source.column for feed in step.feeds for source in feed.sources if source.step is None
        }
        inputs.update({name: raw[name] for name in names if name in raw})
        tensors = {port.tensor.name: port.tensor for every in ports.values() for port in every}
        tensors.update({name: Tensor(name, column.wire_dtype, column.width) for name, column in raw.items()})
        models.append(
            PlacedModel(
                name=f"{stack}_{step.name}",
                step=step.name,
                graph=graph,
                inputs=tuple(tensors[name] for name in names),
                outputs=tuple(port.tensor for port in ports[step.name]),
                columns={
                    port.tensor.name: tuple(step.columns[position].name for position in port.positions)
                    for port in ports[step.name]
                },
            )
        )
    clash = [name for name in lowered.outputs if name in inputs]
    if clash:
        raise StackError(f"output {clash[0]} has the name of a raw column that goes in; give the output another name")
    outputs = tuple(Column(name, source.column.dtype) for name, source in lowered.outputs.items())
    return Placement(Signature(stack, max_batch, tuple(inputs.values()), outputs), tuple(models))


def _ports(lowered: LoweredStack) -> dict[str, list[_Port]]:
    """What every step emits: what its readers want, and what leaves the ensemble."""
    ports: dict[str, list[_Port]] = {step.name: [] for step in lowered.steps}
    workflows = {step.name for step in lowered.steps if isinstance(step.body, Workflow)}
    columns = {step.name: step.columns for step in lowered.steps}
    for step in lowered.steps:
        for feed in step.feeds:
            for source, run in _runs(feed.sources):
                if source is None:
                    continue
                if source in workflows:
                    positions, dtype = tuple(item.position for item in run), feed.dtype
                    name = f"{source}__{step.name}_{feed.name}"
                else:
                    positions, dtype, name = tuple(range(len(columns[source]))), "float32", f"{source}__out"
                if all((port.positions, port.tensor.dtype) != (positions, dtype) for port in ports[source]):
                    same = sum(port.tensor.name.split(".")[0] == name for port in ports[source])
                    width = sum(columns[source][position].width for position in positions)
                    tensor = Tensor(f"{name}.{same}" if same else name, dtype, width)
                    ports[source].append(_Port(tensor, positions))
    for name, output in lowered.outputs.items():
        assert output.step is not None  # Stack checks it
        ports[output.step].append(_Port(Tensor(name, output.column.dtype, 1), (output.position,)))
    return ports


def _runs(sources: Sequence[Source]) -> list[tuple[str | None, list[Source]]]:
    """Neighbours of one step together; raw columns one by one."""
    runs: list[tuple[str | None, list[Source]]] = []
    for source in sources:
        if runs and source.step is not None and runs[-1][0] == source.step:
            runs[-1][1].append(source)
        else:
            runs.append((source.step, [source]))
    return runs


def _graph(step: LoweredStep, ports: dict[str, list[_Port]]) -> onnx.ModelProto:
    if isinstance(step.body, Workflow):
        compiled = step.body.compiled
        values = [compiled.values[column.name] for column in step.columns]
        return compiled.graph.model(
            [
                (
                    port.tensor.name,
                    pack(compiled.graph, [values[position] for position in port.positions], port.tensor.dtype),
                    port.tensor.dtype,
                    port.tensor.width,
                )
                for port in ports[step.name]
            ]
        )
    graph = GraphBuilder()
    feeds = {feed.name: _feed(graph, feed, ports) for feed in step.feeds}
    match step.body:
        case ForestSet() as forests:
            group = None
            if "group" in feeds:
                text = step.feeds[1].dtype == "string"
                positions = {str(g) if text else int(str(g)): number for number, g in enumerate(forests.groups)}
                group = graph.label_encode(feeds["group"], positions, -1)
            answers = add_forests(graph, feeds["rows"], forests, group)
        case Net() as net:
            (answers,) = graph.embed(net.model, feeds)
        case Mean():
            answers = graph.add("Mean", *feeds.values())
    width = len(step.columns)
    return graph.model(
        [
            (port.tensor.name, graph.columns(answers, port.positions, width), "float32", port.tensor.width)
            for port in ports[step.name]
        ]
    )


def _feed(graph: GraphBuilder, feed: Feed, ports: dict[str, list[_Port]]) -> str:
    """The tensor of a feed, put together from the ports of the steps it reads."""
    pieces = []
    for source, run in _runs(feed.sources):
        positions = tuple(item.position for item in run)
        if source is None:
            column = run[0].column
            piece = graph.input(column.name, column.wire_dtype, column.width)
            pieces.append(graph.cast(piece, column.wire_dtype, feed.dtype))
            continue
        port = next(
            port
            for port in ports[source]
            if (port.positions == positions and port.tensor.dtype == feed.dtype) or port.tensor.name == f"{source}__out"
        )
        piece = graph.input(port.tensor.name, port.tensor.dtype, port.tensor.width)
        if port.positions != positions:
            piece = graph.columns(piece, positions, port.tensor.width)
        pieces.append(graph.cast(piece, port.tensor.dtype, feed.dtype))
    tensor = graph.concat(pieces)
    return graph.add("Squeeze", tensor, graph.constant(np.array([1], np.int64))) if feed.flat else tensor
