"""A placement for Triton's native backends: graphs are cut at forests, which FIL answers, and at nets, on request.

A net that its framework's own backend is to answer becomes a model of its own, as every forest does. What lies before,
between and after them are models of the ONNX Runtime backend. Triton joins requests row by row, so that only tensors of
[rows, width] travel between models; others are made again where they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import helper

from tristage.errors import ArtifactError
from tristage.export.net.native import NativeNet, native_of
from tristage.export.onnx_graph import ENGINE_DOMAIN, GraphBuilder, dtype_of, onnx_type
from tristage.export.place import Checkpoint, PlacedModel, Placement, Tensor
from tristage.export.release import for_release
from tristage.export.split import Columns, Program, split

__all__ = ["cut"]

Names = Mapping[str, Sequence[str]]  # a graph's tensor -> what the ensemble calls it


def cut(placement: Placement) -> Placement:
    """The same stack with models of their own for checkpoints and nets, and for what lies before, between and after."""
    models: list[PlacedModel] = []
    for model in placement.models:
        program = split(model.graph, _travels) if isinstance(model.graph, onnx.ModelProto) else None
        models += [model] if program is None else _parts(model, program, placement.signature.stack)
    return replace(placement, models=tuple(map(_readable, models)))


def _parts(model: PlacedModel, program: Program, stack: str) -> Iterator[PlacedModel]:
    assert isinstance(model.graph, onnx.ModelProto)
    asked = [node for node in model.graph.graph.node if node.domain == ENGINE_DOMAIN]
    names = _names(model, program)
    others = set(model.steps) - {node.name for node in asked}
    stage, batch = 0, set[str]()  # engines that are asked side by side end a stage
    for part in program.parts:
        if isinstance(part, onnx.NodeProto):
            if batch.intersection(part.input):
                stage, batch = stage + 1, set()
            batch.update(part.output)
            yield _engine(part, names, stack)
            continue
        assert isinstance(part, onnx.ModelProto)
        stage, batch = stage + bool(batch), set()
        steps = tuple(step for step in model.steps if step in others and model.stages[step] == stage)
        label = str(stage) if len(model.steps) > 1 else "answers" if stage else "rows"
        own = replace(model, name=f"{model.name}__{label}", steps=steps, on_gpu=model.on_gpu.intersection(steps))
        yield _graph(part, names, own)
    made = {name for node in asked for name in node.output}
    copies = {name: its for name, its in names.items() if len(its) > 1 and (name in made or its[0] == name)}
    if copies:
        yield _copies(copies, model)


def _travels(value: onnx.ValueInfoProto) -> bool:
    shape = value.type.tensor_type.shape.dim
    return len(shape) == 2 and shape[1].HasField("dim_value")


def _names(model: PlacedModel, program: Program) -> Names:
    """Its own names where a tensor comes in or is emitted, else one that no other model has."""
    names = {tensor.name: [tensor.name] for tensor in model.inputs}
    for emitted, tensor in program.outputs.items():
        names.setdefault(tensor, []).append(emitted)
    for part in program.parts:
        assert not isinstance(part, Columns)  # native graphs are not split for that engine
        made = part.output if isinstance(part, onnx.NodeProto) else [value.name for value in part.graph.output]
        for name in made:
            names.setdefault(name, [f"{model.name}{name}"])
    return names


def _engine(node: onnx.NodeProto, names: Names, stack: str) -> PlacedModel:
    """The model that a forest's or a net's node is."""
    native = native_of(node)
    if native is not None:
        read = [
            Tensor(names[name][0], its.dtype, its.width) for name, its in zip(node.input, native.inputs, strict=True)
        ]
        made = [
            Tensor(names[name][0], its.dtype, its.width) for name, its in zip(node.output, native.outputs, strict=True)
        ]
        graph: Checkpoint | NativeNet = native
    else:
        said = {attribute.name: attribute for attribute in node.attribute}
        features, width = said["features"].i, said["width"].i
        read = [Tensor(names[node.input[0]][0], "float32", features)]
        made = [Tensor(names[node.output[0]][0], "float32", width)]
        graph = Checkpoint(said["file"].s.decode(), features, width)
    return PlacedModel(
        name=f"{stack}_{node.name}",
        steps=(node.name,),
        graph=graph,
        inputs=tuple(read),
        outputs=tuple(made),
        columns={},
        on_gpu=frozenset({node.name}),
    )


def _graph(part: onnx.ModelProto, names: Names, model: PlacedModel) -> PlacedModel:
    """A part whose inputs and outputs have the ensemble's names: renamed by nodes that copy, which cost nothing.

    Args:
        part: the part.
        names: what the ensemble calls its tensors.
        model: the model that it is a part of, with the part's name and steps.
    """
    known = {tensor.name: tensor for tensor in (*model.inputs, *model.outputs)}
    inputs = [(value.name, _tensor(value, names[value.name][0], known)) for value in part.graph.input]
    outputs = [(value.name, _tensor(value, its, known)) for value in part.graph.output for its in names[value.name]]
    before = [helper.make_node("Identity", [its.name], [name]) for name, its in inputs if its.name != name]
    after = [helper.make_node("Identity", [name], [its.name]) for name, its in outputs]
    graph = helper.make_graph(
        [*before, *part.graph.node, *after],
        "graph",
        [_value(its) for _, its in inputs],
        [_value(its) for _, its in outputs],
        list(part.graph.initializer),
    )
    return replace(
        model,
        graph=helper.make_model(
            graph, opset_imports=part.opset_import, ir_version=part.ir_version, producer_name=part.producer_name
        ),
        inputs=tuple(its for _, its in inputs),
        outputs=tuple(its for _, its in outputs),
        columns={},
    )


def _copies(copies: Names, model: PlacedModel) -> PlacedModel:
    """What emits a raw column or an engine's answer under further names."""
    emitted = {tensor.name: tensor for tensor in model.outputs}
    graph = GraphBuilder()
    outputs = [(emitted[other], its[0]) for its in copies.values() for other in its[1:]]
    sources = {its: Tensor(its, tensor.dtype, tensor.width) for tensor, its in outputs}
    for tensor in sources.values():
        graph.input(tensor.name, tensor.dtype, tensor.width)
    return PlacedModel(
        name=f"{model.name}__copies",
        steps=(),
        graph=graph.model([(tensor.name, its, tensor.dtype, tensor.width) for tensor, its in outputs]),
        inputs=tuple(sources.values()),
        outputs=tuple(tensor for tensor, _ in outputs),
        columns={},
    )


def _readable(model: PlacedModel) -> PlacedModel:
    """A model that ONNX Runtime 1.19 can run.

    Its nodes all have names: two that it makes of nameless ones would get the same.

    Raises:
        ArtifactError: a step has what nothing there can stand for.
    """
    if not isinstance(model.graph, onnx.ModelProto):
        return model
    graph = onnx.ModelProto()
    try:
        graph.CopyFrom(for_release(model.graph))
    except ArtifactError as error:
        raise ArtifactError(f"step {', '.join(model.steps) or model.name}: {error}") from error
    for number, node in enumerate(graph.graph.node):
        node.name = node.name or f"node{number}"
    return replace(model, graph=graph, alone=True)


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, onnx_type(tensor.dtype), ["rows", tensor.width])


def _tensor(value: onnx.ValueInfoProto, name: str, known: Mapping[str, Tensor]) -> Tensor:
    """The tensor that the ensemble calls `name`; as it is declared, or by its type."""
    kind = value.type.tensor_type
    return known.get(name) or Tensor(name, dtype_of(kind.elem_type), kind.shape.dim[1].dim_value)
