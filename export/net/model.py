"""What every neural net is converted to: an ONNX model, and how to ask the framework itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import inliner, numpy_helper, version_converter

from tristage.errors import ArtifactError
from tristage.export.onnx_graph import IR_VERSION, OPSET, OPSET_ML
from tristage.export.rewrites.finding import Finding
from tristage.export.tables import LARGE, externalize

__all__ = ["Net", "NetConverter", "NetInput", "net_from_onnx"]

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
        model: the ONNX model; the first dimension of every input and of its output is the rows.
        inputs: what it reads.
        outputs: columns it answers with.
        dtype: of the answers.
        predict: the framework's own answer for arrays by input name: [rows, outputs].
        rewritten: what the exact rewrites of its graph found.
    """

    model: onnx.ModelProto
    inputs: tuple[NetInput, ...]
    outputs: int
    dtype: str
    predict: Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]
    rewritten: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class NetConverter:
    """How one framework's nets are recognised, read and converted.

    Attributes:
        framework: its name.
        suffixes: of its files.
        modules: top-level packages of its model classes.
        convert: (path or model, what it is called in messages, folder that large tables are written to, None to keep
            them in memory) -> Net.
        marker: where its artifacts are folders, the file that makes a folder one.
    """

    framework: str
    suffixes: tuple[str, ...]
    modules: tuple[str, ...]
    convert: Callable[[Any, str, Path | None], Net]
    marker: str = ""


def net_from_onnx(
    model: onnx.ModelProto,
    what: str,
    predict: Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]],
    tables: Path | None = None,
) -> Net:
    """Check that an ONNX model can be a step, and describe its inputs.

    Args:
        model: the model; its large tensors may lie in files of `tables` already.
        what: what it is called in messages.
        predict: asks the framework.
        tables: the folder that large tensors are moved to; None leaves them where they are.

    Raises:
        ArtifactError: it has several outputs, an input of a rank above 2 or of a fixed number of rows, operators that
            are not ONNX's own, or asks for a newer ONNX than OPSET.
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
    if len(model.graph.output) != 1:
        names = ", ".join(output.name for output in model.graph.output)
        raise ArtifactError(
            f"{what}: it has {len(model.graph.output)} outputs ({names}); a net answers with one tensor [rows, n]"
        )
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_input(value, what) for value in model.graph.input if value.name not in given)
    answer = model.graph.output[0].type.tensor_type
    shape = answer.shape.dim
    if answer.elem_type not in _DTYPES:
        raise ArtifactError(f"{what}: its output is {onnx.TensorProto.DataType.Name(answer.elem_type)}, not numbers")
    if len(shape) != 2 or shape[1].dim_value < 1:
        raise ArtifactError(
            f"{what}: its output must have the shape [rows, n] with n known; it has {len(shape)} dimensions"
        )
    return Net(model=model, inputs=inputs, outputs=shape[1].dim_value, dtype=_DTYPES[answer.elem_type], predict=predict)


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
