"""lowered steps -> Triton models: which tensors pass between them, and each model's graph.

In the layout `ensemble` every step is a Triton model of its own. A workflow emits what is read of it in one tensor for
each dtype, a model emits its answers in one tensor, and a reader picks its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from tristage.columns import Column, Signature
from tristage.errors import ArtifactError, StackError
from tristage.export.candidates import Candidates
from tristage.export.feature_source import Sourced
from tristage.export.features import Features
from tristage.export.forest import ForestSet
from tristage.export.forest.engines import write_default
from tristage.export.forest.native import add_checkpoint
from tristage.export.forest.to_onnx import add_forests
from tristage.export.lowered import Feed, LoweredStack, LoweredStep, Source, Workflow
from tristage.export.mean import Mean
from tristage.export.net import Net
from tristage.export.net.native import NativeNet
from tristage.export.onnx_graph import ENGINE_DOMAIN, GraphBuilder
from tristage.export.retrieval import Retrieval
from tristage.export.top_k import TopK
from tristage.export.workflow import InterpretedWorkflow
from tristage.export.workflow.values import pack
from tristage.fingerprint import DERIVED
from tristage.serving.workflow_file import Port, WorkflowFile

__all__ = ["Checkpoint", "PlacedModel", "Placement", "Tensor", "fuse", "place"]


@dataclass(frozen=True)
class Tensor:
    """A tensor between Triton models, of shape [rows, width]."""

    name: str
    dtype: str
    width: int


@dataclass(frozen=True)
class Checkpoint:
    """A forest of Triton's FIL backend.

    Attributes:
        file: the Treelite checkpoint's file.
        features: columns that it reads, float32.
        width: columns of its answer, float32.
    """

    file: str
    features: int
    width: int


@dataclass(frozen=True)
class PlacedModel:
    """One Triton model: a step's graph and its tensors, whose names are the ensemble's.

    Attributes:
        name: the Triton model's name.
        steps: the steps it computes.
        graph: the ONNX model; of a forest that FIL serves, its checkpoint; of a net that its framework's own backend
            serves, its file; of a workflow that NVTabular itself serves, what its `workflow.json` says.
        inputs: the tensors it reads.
        outputs: the tensors it emits.
        columns: output tensor -> the columns that lie side by side in it, each as (step, column); empty where a step
            is made of several models.
        stages: step -> how many engines it has to wait for, one after the other; of fused steps.
        on_gpu: those of its steps that are worth a GPU: forests, nets, and workflows that NVTabular itself serves.
        alone: whether a backend of Triton's own answers it, so that no engine of tristage's does.
    """

    name: str
    steps: tuple[str, ...]
    graph: onnx.ModelProto | Checkpoint | NativeNet | WorkflowFile
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    columns: Mapping[str, tuple[tuple[str, str], ...]]
    stages: Mapping[str, int] = field(default_factory=dict)
    on_gpu: frozenset[str] = frozenset()
    alone: bool = False


@dataclass(frozen=True)
class Placement:
    """A stack laid out as Triton models, each after those it reads.

    Attributes:
        signature: what goes in and comes out.
        models: the Triton models.
        tables: the folder of the large tables that their graphs refer to; None where all is in the graphs.
    """

    signature: Signature
    models: tuple[PlacedModel, ...]
    tables: Path | None = None


@dataclass(frozen=True)
class _Port:
    """A tensor that a step emits: some of its columns, in order, in one dtype."""

    tensor: Tensor
    positions: tuple[int, ...]


def place(lowered: LoweredStack, max_batch: int, *, native: bool = False) -> Placement:
    """Lay a lowered stack out in the layout `ensemble`.

    Args:
        lowered: the stack.
        max_batch: rows that one request may hold.
        native: whether FIL is to answer its forests, once the graphs are `cut`; else the runner does.

    Raises:
        StackError: an output has the name of a raw column.
    """
    stack = lowered.stack.name
    ports = _ports(lowered)
    steps = {step.name: step for step in lowered.steps}
    models = []
    inputs: dict[str, Column] = {}
    for step in lowered.steps:
        graph = _graph(step, steps, ports, lowered.tables, native)
        if isinstance(graph, WorkflowFile):
            names = [column.name for column in graph.inputs]
        else:
            names = list(dict.fromkeys(value.name.removeprefix(DERIVED) for value in graph.graph.input))
        raw = {
            source.column.name: source.column for feed in step.feeds for source in feed.sources if source.step is None
        }
        inputs.update({name: raw[name] for name in names if name in raw})
        tensors = {port.tensor.name: port.tensor for every in ports.values() for port in every}
        tensors.update({name: Tensor(name, column.wire_dtype, column.width) for name, column in raw.items()})
        models.append(
            PlacedModel(
                name=f"{stack}_{step.name}",
                steps=(step.name,),
                graph=graph,
                inputs=tuple(tensors[name] for name in names),
                outputs=tuple(port.tensor for port in ports[step.name]),
                columns={
                    port.tensor.name: tuple((step.name, step.columns[position].name) for position in port.positions)
                    for port in ports[step.name]
                },
                stages={step.name: 0},
                on_gpu=frozenset({step.name} if _on_gpu(step, graph) else ()),
            )
        )
    clash = [name for name in lowered.outputs if name in inputs]
    if clash:
        raise StackError(f"output {clash[0]} has the name of a raw column that goes in; give the output another name")
    outputs = tuple(answer.column for answer in lowered.outputs.values())
    signature = Signature(stack, max_batch, tuple(inputs.values()), outputs)
    return Placement(signature, tuple(models), lowered.tables)


def _on_gpu(step: LoweredStep, graph: onnx.ModelProto | WorkflowFile) -> bool:
    return isinstance(graph, WorkflowFile) or isinstance(step.body, (ForestSet, Net))


def fuse(placement: Placement) -> Placement:
    """The same stack in the layout `fused`: every step in one Triton model, so that a request makes one hop.

    A workflow that NVTabular itself serves stays a model of its own, which the one reads.
    """
    kept = [model for model in placement.models if isinstance(model.graph, WorkflowFile)]
    graphs = [(model, model.graph) for model in placement.models if isinstance(model.graph, onnx.ModelProto)]
    models = [model for model, _ in graphs]
    if not models:
        return placement
    graph = GraphBuilder()
    raw = [Tensor(column.name, column.wire_dtype, column.width) for column in placement.signature.inputs]
    given = [*raw, *(tensor for model in kept for tensor in model.outputs)]
    read = {tensor.name for model in models for tensor in model.inputs}
    inputs = tuple(tensor for tensor in given if tensor.name in read)
    tensors = {tensor.name: graph.input(tensor.name, tensor.dtype, tensor.width) for tensor in inputs}
    emitted = {tensor.name: tensor for model in models for tensor in model.outputs}
    columns = {name: every for model in models for name, every in model.columns.items()}
    widths = {tensor.name: tensor.width for tensor in inputs}

    def tensor_of(name: str) -> str:
        text = name.removeprefix(DERIVED)
        return tensors[name] if text == name else graph.input(name, "int64", widths[text])

    for model, its in graphs:
        made = graph.embed(its, {value.name: tensor_of(value.name) for value in its.graph.input})
        tensors.update(zip((tensor.name for tensor in model.outputs), made, strict=True))
    outputs = tuple(emitted[column.name] for column in placement.signature.outputs if column.name in emitted)
    name = f"{placement.signature.stack}_fused"
    fused = PlacedModel(
        name=f"{name}_models" if name in {model.name for model in kept} else name,
        steps=tuple(step for model in models for step in model.steps),
        graph=graph.model([(tensor.name, tensors[tensor.name], tensor.dtype, tensor.width) for tensor in outputs]),
        inputs=inputs,
        outputs=outputs,
        columns={tensor.name: columns[tensor.name] for tensor in outputs},
        stages=_stages(models),
        on_gpu=frozenset().union(*(model.on_gpu for model in models)),
    )
    return Placement(placement.signature, (*kept, fused), placement.tables)


def _stages(models: Sequence[PlacedModel]) -> dict[str, int]:
    """How many engines every step has to wait for, one after the other."""
    stages: dict[str, int] = {}
    ends: dict[str, int] = {}  # of a tensor
    for model in models:
        (step,) = model.steps
        stages[step] = max((ends.get(tensor.name, 0) for tensor in model.inputs), default=0)
        assert isinstance(model.graph, onnx.ModelProto)
        engine = any(node.domain == ENGINE_DOMAIN for node in model.graph.graph.node)
        ends.update({tensor.name: stages[step] + engine for tensor in model.outputs})
    return stages


def _ports(lowered: LoweredStack) -> dict[str, list[_Port]]:
    """What every step emits: all that is read of it in one tensor a dtype, and what leaves the ensemble.

    Few wide tensors beat many that fit each reader: between Triton models it is the tensor that costs, not its width.
    """
    workflows = {step.name for step in lowered.steps if isinstance(step.body, Workflow)}
    read: dict[tuple[str, str], set[int]] = {}
    for step in lowered.steps:
        for feed in step.feeds:
            for source in feed.sources:
                if source.step is not None:
                    dtype = feed.dtype if source.step in workflows else source.column.dtype
                    read.setdefault((source.step, dtype), set()).add(source.position)
    ports: dict[str, list[_Port]] = {}
    for step in lowered.steps:
        ports[step.name] = []
        for (name, dtype), positions in sorted(read.items()):
            if name == step.name:
                alike = (position for position, column in enumerate(step.columns) if column.dtype == dtype)
                chosen = tuple(sorted(positions) if name in workflows else alike)
                width = sum(step.columns[position].width for position in chosen)
                ports[name].append(_Port(Tensor(_port_name(name, dtype), dtype, width), chosen))
    for name, answer in lowered.outputs.items():
        tensor = Tensor(name, answer.column.dtype, answer.column.width)
        ports[answer.step].append(_Port(tensor, tuple(source.position for source in answer.sources)))
    return ports


def _port_name(step: str, dtype: str) -> str:
    return f"{step}__{dtype}"


def _runs(sources: Sequence[Source], port: Callable[[Source], str]) -> list[list[Source]]:
    """Neighbours that are in one port together; raw columns one by one."""
    runs: list[list[Source]] = []
    for source in sources:
        if runs and None not in (source.step, runs[-1][0].step) and port(runs[-1][0]) == port(source):
            runs[-1].append(source)
        else:
            runs.append([source])
    return runs


def _graph(
    step: LoweredStep,
    steps: Mapping[str, LoweredStep],
    ports: Mapping[str, list[_Port]],
    tables: Path | None,
    native: bool,
) -> onnx.ModelProto | WorkflowFile:
    if isinstance(step.body, Workflow):
        compiled = step.body.served
        if isinstance(compiled, InterpretedWorkflow):
            emitted = [
                (port.tensor, tuple(step.columns[position] for position in port.positions)) for port in ports[step.name]
            ]
            return compiled.emitting([Port(tensor.name, tensor.dtype, columns) for tensor, columns in emitted])
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
    native_net = isinstance(step.body, Net) and step.body.native
    feeds = {feed.name: _feed(graph, feed, steps, ports, feed.flat and not native_net) for feed in step.feeds}
    match step.body:
        case ForestSet() as forests:
            group = None
            if "group" in feeds:
                text = step.feeds[1].dtype == "string"
                positions = {str(g) if text else int(str(g)): number for number, g in enumerate(forests.groups)}
                group = graph.label_encode(feeds["group"], positions, -1)
            answers = _forests(graph, feeds["rows"], forests, group, tables, step.name, native)
        case Net() | TopK() | Retrieval() | Candidates() | Features() | Sourced() as body:
            made = graph.embed(body.model, feeds) if isinstance(body, Net) else body.lower(graph, feeds, step.name)
            return graph.model(
                _emitted(
                    graph,
                    [
                        (graph.cast(tensor, its.dtype, its.served), its.positions)
                        for tensor, its in zip(made, body.parts, strict=True)
                    ],
                    ports[step.name],
                )
            )
        case Mean():
            answers = step.body.lower(graph, list(feeds.values()))
    return graph.model(_emitted(graph, [(answers, tuple(range(len(step.columns))))], ports[step.name]))


def _emitted(
    graph: GraphBuilder, answers: Sequence[tuple[str, tuple[int, ...]]], ports: Sequence[_Port]
) -> list[tuple[str, str, str, int]]:
    """What a model emits: each port's columns, of the tensor among `answers` that holds them."""
    emitted = []
    for port in ports:
        tensor, positions = next(answer for answer in answers if port.positions[0] in answer[1])
        at = [positions.index(position) for position in port.positions]
        taken = graph.columns(tensor, at, len(positions))
        emitted.append((port.tensor.name, taken, port.tensor.dtype, port.tensor.width))
    return emitted


def _forests(
    graph: GraphBuilder, rows: str, forests: ForestSet, group: str | None, tables: Path | None, step: str, native: bool
) -> str:
    """A step's forests: a checkpoint for FIL where they are `native`, else for the runner's engines; or ONNX nodes."""
    if tables is None:
        return add_forests(graph, rows, forests, group)
    if not native:
        recipe, default = write_default(forests, tables)
        return graph.forest(step, recipe, default, rows, group, forests.width)
    try:
        return add_checkpoint(graph, rows, forests, group, tables, step)
    except ArtifactError as error:
        raise ArtifactError(f"step {step}: {error}") from error


def _feed(
    graph: GraphBuilder, feed: Feed, steps: Mapping[str, LoweredStep], ports: Mapping[str, list[_Port]], flat: bool
) -> str:
    """The tensor of a feed, put together from the ports of the steps it reads; [rows] where it is to be flat."""

    def port_of(source: Source) -> str:
        assert source.step is not None
        dtype = feed.dtype if isinstance(steps[source.step].body, Workflow) else source.column.dtype
        return _port_name(source.step, dtype)

    pieces = []
    for run in _runs(feed.sources, port_of):
        source = run[0].step
        if source is None:
            column = run[0].column
            piece = graph.input(column.name, column.wire_dtype, column.width)
            pieces.append(graph.cast(piece, column.wire_dtype, feed.dtype))
            continue
        port = next(port for port in ports[source] if port.tensor.name == port_of(run[0]))
        piece = graph.input(port.tensor.name, port.tensor.dtype, port.tensor.width)
        at = _places(steps[source], port)
        piece = graph.columns(piece, [place for item in run for place in at[item.position]], port.tensor.width)
        pieces.append(graph.cast(piece, port.tensor.dtype, feed.dtype))
    tensor = graph.concat(pieces)
    return graph.add("Squeeze", tensor, graph.constant(np.array([1], np.int64))) if flat else tensor


def _places(step: LoweredStep, port: _Port) -> dict[int, range]:
    """Where in a port's tensor each of the step's columns lies."""
    places, start = {}, 0
    for position in port.positions:
        width = step.columns[position].width
        places[position] = range(start, start + width)
        start += width
    return places
