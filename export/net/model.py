"""What every neural net is converted to: an ONNX model, and how to ask the framework itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import inliner, numpy_helper, version_converter

from tristage.errors import ArtifactError
from tristage.export.net.outputs import NetOutput, Part, join_answers, join_outputs, parts_of
from tristage.export.onnx_graph import IR_VERSION, OPSET, OPSET_ML
from tristage.export.rewrites.finding import Finding
from tristage.export.tables import LARGE, externalize
from tristage.export.weights import Narrowed

__all__ = ["Ask", "Examples", "Net", "NetConverter", "NetInput", "net_from_onnx"]

Examples = Mapping[str, NDArray[Any]]  # a net's input -> some rows of it
Ask = Callable[[Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]  # rows by input -> an array for each output

_DTYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.BOOL: "bool",
}


@dataclass(frozen=True)
class NetInput:
    """One input of a net: a tensor of shape [rows] (`width` None), [rows, width], or [rows, any] (`width` 0)."""

    name: str
    dtype: str
    width: int | None


@dataclass(frozen=True)
class Net:
    """One converted net.

    Attributes:
        model: the ONNX model; the first dimension of every input and output is the rows.
        inputs: what it reads.
        outputs: what it answers with; those of one part lie side by side in one output of `model`.
        predict: the framework's own answer for arrays by input name: [rows, n] for each part.
        rewritten: what the exact rewrites of its graph found.
        native: whether a framework's own Triton backend answers it; its graph holds a node in its place then, which
            takes [rows, 1] where an input is [rows].
        narrow: the same with narrow weights, which is served where it is there.
    """

    model: onnx.ModelProto
    inputs: tuple[NetInput, ...]
    outputs: tuple[NetOutput, ...]
    predict: Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]]]
    rewritten: tuple[Finding, ...] = ()
    native: bool = False
    narrow: Narrowed | None = None

    @property
    def width(self) -> int:
        """Columns it answers with."""
        return sum(output.width for output in self.outputs)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its outputs by their types, as `model` has them."""
        return parts_of(self.outputs)


@dataclass(frozen=True)
class NetConverter:
    """How one framework's nets are recognised, read and converted.

    Attributes:
        framework: its name.
        suffixes: of its files.
        modules: top-level packages of its model classes.
        convert: (path or model, what it is called in messages, folder that large tables are written to, None to keep
            them in memory; example rows, None where nobody gave any) -> Net.
        marker: where its artifacts are folders, the file that makes a folder one.
        by_example: whether it asks for example rows; the others' artifacts say what they read.
    """

    framework: str
    suffixes: tuple[str, ...]
    modules: tuple[str, ...]
    convert: Callable[[Any, str, Path | None, Examples | None], Net]
    marker: str = ""
    by_example: bool = False


def net_from_onnx(
    model: onnx.ModelProto,
    what: str,
    predict: Ask,
    tables: Path | None = None,
    names: Sequence[str] | None = None,
) -> Net:
    """Check that an ONNX model can be a step, and describe its inputs.

    Args:
        model: the model; its large tensors may lie in files of `tables` already.
        what: what it is called in messages.
        predict: asks the framework; answers with an array for each of the model's outputs.
        tables: the folder that large tensors are moved to; None leaves them where they are.
        names: of its outputs, "" where the framework has no name for one; None takes the model's.

    Raises:
        ArtifactError: an input or output has a rank above 2 or an input a fixed number of rows, operators are not
            ONNX's own, or it asks for a newer ONNX than OPSET.
    """
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("", 0) > OPSET or model.ir_version > IR_VERSION:
        raise ArtifactError(
            f"{what}: it uses ONNX opset {versions.get('', 0)} and IR {model.ir_version}; "
            f"export it with opset {OPSET} or below, and IR {IR_VERSION} or below"
        )
    if model.functions:
        model = inliner.inline_local_functions(model)
    foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx", "ai.onnx.ml"})
    if foreign or versions.get("ai.onnx.ml", 0) > OPSET_ML:
        what_it_needs = ", ".join(foreign) or f"ai.onnx.ml {versions['ai.onnx.ml']}"
        raise ArtifactError(f"{what}: it uses operators of {what_it_needs}; export it with plain ONNX operators")
    if tables is not None:
        model = _lighter(model, tables)
    if versions.get("", 0) < OPSET:
        constants = model.graph.initializer
        try:
            model = version_converter.convert_version(model, OPSET)
        except Exception as error:  # the converter is C++ and raises RuntimeError and its own kinds
            raise ArtifactError(
                f"{what}: it cannot be brought from ONNX opset {versions.get('', 0)} to {OPSET} ({error}); export it "
                f"with opset {OPSET}"
            ) from error
        # the converter drops constants that only nested graphs read
        kept = {tensor.name for tensor in model.graph.initializer}
        model.graph.initializer.extend(tensor for tensor in constants if tensor.name not in kept)
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_input(value, what) for value in model.graph.input if value.name not in given)
    outputs = tuple(_output(value, what) for value in model.graph.output)
    if names is not None:
        outputs = tuple(replace(output, name=name) for output, name in zip(outputs, names, strict=True))
    return Net(
        model=join_outputs(model, outputs),
        inputs=inputs,
        outputs=outputs,
        predict=lambda rows: join_answers(predict(rows), outputs),
    )


def _lighter(model: onnx.ModelProto, tables: Path) -> onnx.ModelProto:
    """The model with its large tensors in files: the version converter would copy them several times."""
    large = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= LARGE}
    if not large:
        return model
    rest = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    rest.graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(rest.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        moved = externalize(tensor.name, numpy_helper.to_array(tensor), tables) if tensor.name in large else tensor
        rest.graph.initializer.append(moved)
    return rest


def _input(value: onnx.ValueInfoProto, what: str) -> NetInput:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _DTYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ArtifactError(f"{what}: input {value.name} is {kind}; known are {', '.join(_DTYPES.values())}")
    rank = len(tensor.shape.dim)
    if rank not in (1, 2):
        raise ArtifactError(f"{what}: input {value.name} has {rank} dimensions; an input is [rows] or [rows, n]")
    if tensor.shape.dim[0].dim_value > 0:
        raise ArtifactError(
            f"{what}: its input {value.name} takes exactly {tensor.shape.dim[0].dim_value} rows; export it with a "
            "dynamic first dimension"
        )
    width = None if rank == 1 else tensor.shape.dim[1].dim_value
    return NetInput(value.name, _DTYPES[tensor.elem_type], width)


def _output(value: onnx.ValueInfoProto, what: str) -> NetOutput:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _DTYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ArtifactError(f"{what}: its output {value.name} is {kind}, not numbers")
    shape = tensor.shape.dim
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1].dim_value < 1):
        known = "of which the second is not known" if len(shape) == 2 else f"({len(shape)} dimensions)"
        raise ArtifactError(
            f"{what}: its output {value.name} must have the shape [rows] or [rows, n] with n known; it has "
            f"[{', '.join(str(dim.dim_value or dim.dim_param or '?') for dim in shape)}] {known}"
        )
    return NetOutput(value.name, None if len(shape) == 1 else shape[1].dim_value, _DTYPES[tensor.elem_type])
