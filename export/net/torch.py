"""PyTorch: an nn.Module with example rows, an ExportedProgram, or the .pt2 file that torch.export.save wrote."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.net.model import Ask, Examples, Net, NetConverter, net_from_onnx
from tristage.export.net.top_k import nan_above_all
from tristage.export.net.torch_attention import answer_nothing_with_zero
from tristage.export.net.torch_errors import first_line, why_no_export, why_no_onnx
from tristage.export.onnx_graph import OPSET
from tristage.export.tables import LARGE, store

__all__ = [
    "TORCH",
    "answer_names",
    "evaluating",
    "flat_answers",
    "open_program",
    "program_answers",
    "quiet",
]


def convert(artifact: Any, what: str, tables: Path | None = None, examples: Examples | None = None) -> Net:
    """Convert a net through torch's own ONNX exporter. TorchScript in memory goes the way of its files.

    Raises:
        ArtifactError: the file is missing or not a .pt2, a module has no example rows, the batch is not dynamic, or
            torch cannot export a layer, which the message names.
    """
    import torch

    if isinstance(artifact, torch.jit.ScriptModule):
        from tristage.export.net.torch_script import TORCH_SCRIPT

        return TORCH_SCRIPT.convert(artifact, what, tables, examples)
    program, predict = open_program(artifact, what, examples)
    return _convert(program, what, tables, predict)


def open_program(artifact: Any, what: str, examples: Examples | None) -> tuple[Any, Ask]:
    """An nn.Module with example rows, an ExportedProgram or its file, as a program of any number of rows.

    Returns:
        The torch.export.ExportedProgram, and what asks the net: rows by input -> the tensors that it answers.

    Raises:
        ArtifactError: see `convert`.
    """
    import torch

    if isinstance(artifact, torch.nn.Module):
        if examples is None:
            raise ArtifactError(
                f"{what}: a {type(artifact).__name__} does not say what it reads; give the step examples, some rows of "
                f"every input: examples={{{', '.join(f'{name!r}: ...' for name in _arguments(artifact))}}}"
            )
        program, ask = _program(artifact, examples, what), _ask_module(artifact)
        _check(program, what)
        return program, ask
    if examples is not None:
        raise ArtifactError(f"{what}: it says itself what it reads; leave examples out")
    if isinstance(artifact, Path):
        try:
            with quiet():
                program = torch.export.load(artifact)
        except Exception as error:  # torch raises whatever its archive reader met
            raise ArtifactError(
                f"{what}: torch {torch.__version__} cannot read {artifact} ({first_line(error)}); "
                "write it with torch.export.save",
                path=artifact,
            ) from error
    elif isinstance(artifact, torch.export.ExportedProgram):
        program = artifact
    else:
        raise ArtifactError(f"{what}: a {type(artifact).__name__} is no net; give an nn.Module or an ExportedProgram")
    _check(program, what)
    return program, _ask_program(program)


def _arguments(module: Any) -> dict[str, inspect.Parameter]:
    """What a module's forward takes, by name."""
    return {
        name: parameter
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _program(module: Any, examples: Examples, what: str) -> Any:
    """The module in evaluation mode as a program of any number of rows."""
    import torch

    arguments = _arguments(module)
    lacking = [name for name, one in arguments.items() if one.default is one.empty and name not in examples]
    strange = [name for name in examples if name not in arguments]
    if lacking or strange:
        fault = f"lack {lacking[0]}" if lacking else f"have {strange[0]}"
        raise ArtifactError(f"{what}: its examples {fault}; its forward takes {', '.join(arguments)}")
    given = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in examples.items()}
    rows = torch.export.Dim("rows", min=1)
    try:
        with quiet(), evaluating(module):
            return torch.export.export(module, (), given, dynamic_shapes={name: {0: rows} for name in given})
    except Exception as error:  # torch raises what forward raises, and its own kinds
        raise ArtifactError(f"{what}: {why_no_export(error, module)}") from error


def _convert(program: Any, what: str, tables: Path | None, predict: Ask) -> Net:
    import torch

    try:
        with quiet():
            exact = answer_nothing_with_zero(program)
            exported = torch.onnx.export(exact, dynamo=True, opset_version=OPSET, verbose=False, optimize=True)
    except Exception as error:  # the exporter raises many kinds
        raise ArtifactError(f"{what}: {why_no_onnx(error)}") from error
    assert exported is not None
    if tables is not None:
        _store_tables(exported.model, tables)
    return nan_above_all(net_from_onnx(exported.model_proto, what, predict, tables, program_answers(program)))


def program_answers(program: Any) -> list[str]:
    """The names of what a program answers, as `answer_names`."""
    import torch

    shape = program.call_spec.out_spec
    return answer_names(torch.utils._pytree.tree_unflatten(list(range(shape.num_leaves)), shape))


def _ask_module(module: Any) -> Ask:
    import torch

    def predict(inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        with torch.inference_mode(), evaluating(module):
            tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in inputs.items()}
            return [tensor.numpy() for tensor in flat_answers(module(**tensors))]

    return predict


def _ask_program(program: Any) -> Ask:
    import torch

    names = program.graph_signature.user_inputs
    module = program.module()

    def predict(inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names]
            arguments, keywords = torch.utils._pytree.tree_unflatten(tensors, program.call_spec.in_spec)
            return [tensor.numpy() for tensor in flat_answers(module(*arguments, **keywords))]

    return predict


def flat_answers(answers: Any) -> list[Any]:
    """The tensors of what a net answers: one, or those of a dict or a tuple, in torch's own order."""
    import torch

    return list(torch.utils._pytree.tree_leaves(answers))


def answer_names(answers: Any) -> list[str]:
    """The names of what a net answers, in the order of `flat_answers`: a dict's keys, a named tuple's fields, or ""."""
    names = list(map(str, answers)) if isinstance(answers, Mapping) else list(getattr(answers, "_fields", ()))
    count = len(flat_answers(answers))
    return names if len(names) == count else [""] * count


def _store_tables(model: Any, tables: Path) -> None:
    """Write large tensors to files, straight from torch's memory: they are never in a protobuf."""
    import onnx_ir

    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= LARGE:
            file = store(tensor.numpy(), tables)
            value.const_value = onnx_ir.ExternalTensor(
                file, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=tensor.name, base_dir=tables
            )


def _check(program: Any, what: str) -> None:
    _check_dynamic(program, what)
    _check_evaluation(program, what)


def _check_dynamic(program: Any, what: str) -> None:
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            rows = node.meta["val"].shape[0]
            if isinstance(rows, int):
                raise ArtifactError(
                    f"{what}: its input {node.name} takes exactly {rows} rows; export it with a dynamic batch: "
                    "dynamic_shapes={..: {0: torch.export.Dim('rows')}}"
                )


def _check_evaluation(program: Any, what: str) -> None:
    """Refuse a program whose answers hang on chance, or on who else is in the batch."""
    for node in program.graph.nodes:
        if node.op != "call_function" or not any(word in str(node.target) for word in ("dropout", "batch_norm")):
            continue
        names = [argument.name for argument in node.target._schema.arguments]
        arguments = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if arguments.get("train") is True or arguments.get("training") is True:
            raise ArtifactError(
                f"{what}: it was exported in training mode ({node.target}); call torch.export.export(model.eval(), ...)"
            )


@contextlib.contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """The module in evaluation mode, and afterwards, with all its parts, in the mode that it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch.export prints progress and warns about its own internals; errors still come as exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    # torch looks for OpenAI's triton, whose LLVM ends a process that has loaded TensorFlow's; ONNX needs neither
    blocked = "tensorflow" in sys.modules and "triton" not in sys.modules
    if blocked:
        sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if blocked:
            del sys.modules["triton"]


TORCH = NetConverter(framework="PyTorch", suffixes=(".pt2",), modules=("torch",), convert=convert, by_example=True)
