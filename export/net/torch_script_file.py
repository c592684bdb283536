"""TorchScript for Triton's pytorch backend: `model.pt`, inputs INPUT__0, ..., outputs OUTPUT__0, ...

A program's operators are TorchScript's own, so it is compiled as it is written, and holds for any number of rows;
tracing it would fix them. Tensors that it makes are made where its inputs are, on a GPU too.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.net.model import Ask, Examples, Net, NetInput
from tristage.export.net.native import NativeBackend, NativeNet, NativeTensor, native_net
from tristage.export.net.torch import flat_answers, open_program, program_answers, quiet
from tristage.export.net.torch_errors import first_line
from tristage.export.net.torch_script import Called, NamedTorchScript, by_position

__all__ = ["PYTORCH"]

_PROBE = 2  # rows that a script is tried with
_NUMBER = re.compile(rb"\.___torch_mangle_\d+")  # of a class whose name this process had used


def write(artifact: Any, step: str, folder: Path, examples: Examples | None = None) -> Net:
    """Write an nn.Module with example rows, an ExportedProgram, or TorchScript.

    Raises:
        ArtifactError: it cannot be read, or has no TorchScript.
    """
    import torch

    what = f"step {step}"
    scripted = isinstance(artifact, (NamedTorchScript, torch.jit.ScriptModule))
    ask: Ask
    inputs: Sequence[NetInput]
    with quiet():
        if scripted or (isinstance(artifact, (str, Path)) and Path(artifact).suffix != ".pt2"):
            called = by_position(artifact, what, examples)
            script, names = _traced(called, what)
            inputs, ask = called.inputs, called.predict
        else:
            program, ask = open_program(artifact, what, examples)
            script, inputs, names = _compiled(program, what), _inputs(program), program_answers(program)
        for tensor in inputs:
            if tensor.width == 0:
                raise ArtifactError(
                    f"{what}: its input {tensor.name} takes any number of values a row; Triton's pytorch backend needs "
                    "to know how many: export it with a fixed second dimension, or leave backend out"
                )
        given = tuple(
            NativeTensor(f"INPUT__{at}", tensor.dtype, tensor.width or 1, tensor.width is None)
            for at, tensor in enumerate(inputs)
        )
        answers = _probe(script, given, what)
        file = f"net-{step}.pt"
        _save(script, folder / file)
    native = NativeNet("pytorch", file, given, answers)
    return native_net(step, native, [tensor.name for tensor in inputs], names, ask)


def _inputs(program: Any) -> list[NetInput]:
    """What a program reads; a second dimension that may change is 0."""
    its = set(program.graph_signature.user_inputs)
    values = [(node.name, node.meta["val"]) for node in program.graph.nodes if node.op == "placeholder"]
    return [
        NetInput(name, str(value.dtype).removeprefix("torch."), _width(value.shape))
        for name, value in values
        if name in its
    ]


def _width(shape: Sequence[Any]) -> int | None:
    return None if len(shape) == 1 else shape[1] if isinstance(shape[1], int) else 0


def _compiled(program: Any, what: str) -> Any:
    """A program as a ScriptModule of its inputs, in order, that answers a tuple."""
    import torch

    unlifted = program.module(check_guards=False)
    graph, weights = unlifted.graph, {}
    graph.set_codegen(torch.fx.CodeGen())  # inputs in order, not a tree of them
    graph.eliminate_dead_code()
    first = next(node for node in graph.nodes if node.op == "placeholder")
    for node in list(graph.nodes):
        if node.op == "get_attr":
            name = "w_" + re.sub(r"\W", "_", node.target)
            held = _attribute(unlifted, node.target)
            weights[name] = held.detach() if isinstance(held, torch.Tensor) else held
            node.target = name
        elif node.op == "output":
            node.args = (tuple(flat_answers(node.args[0])),)
        elif isinstance(node.target, torch._ops.OpOverload):
            if node.target.__name__.startswith(("_assert", "sym_constrain")):
                graph.erase_node(node)
                continue
            sized = node.target is torch.ops.aten.sym_size.int
            node.target = torch.ops.aten.size if sized else node.target.overloadpacket
        if node.kwargs.get("device") is not None:
            with graph.inserting_before(node):
                node.update_kwarg("device", graph.call_function(getattr, (first, "device")))
    try:
        return torch.jit.script(torch.fx.GraphModule(weights, graph).eval())
    except Exception as error:  # the compiler raises many kinds
        raise ArtifactError(
            f"{what}: torch cannot write it as TorchScript ({first_line(error)}); leave backend out, or give the .pt "
            "file of its torch.jit.script"
        ) from error


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _traced(called: Called, what: str) -> tuple[Any, list[str]]:
    """TorchScript as it is, called by position and answering a tuple, which is all that the backend can take.

    Returns:
        The script, and the names of its answers.
    """
    import torch

    try:
        with torch.no_grad():
            return torch.jit.trace(called.module, called.given, check_trace=False), called.answered()
    except Exception as error:  # the tracer raises what the script raises
        raise ArtifactError(f"{what}: it does not answer its examples ({first_line(error)})") from error


def _probe(script: Any, inputs: Sequence[NativeTensor], what: str) -> tuple[NativeTensor, ...]:
    """What a script answers, by asking it about rows of zeros."""
    import torch

    rows = [
        torch.zeros((_PROBE,) if its.flat else (_PROBE, its.width), dtype=getattr(torch, its.dtype)) for its in inputs
    ]
    try:
        with torch.inference_mode():
            answers = script(*rows)
    except Exception as error:  # torch raises many kinds
        raise ArtifactError(f"{what}: its TorchScript does not answer rows of zeros ({first_line(error)})") from error
    for answer in answers:
        if answer.ndim not in (1, 2) or len(answer) != _PROBE or not answer.numel():
            raise ArtifactError(
                f"{what}: of {_PROBE} rows it makes {list(answer.shape)}; a net answers [rows] or [rows, n]"
            )
    return tuple(
        NativeTensor(
            f"OUTPUT__{at}",
            str(answer.dtype).removeprefix("torch."),
            1 if answer.ndim == 1 else int(answer.shape[1]),
            answer.ndim == 1,
        )
        for at, answer in enumerate(answers)
    )


def _save(script: Any, path: Path) -> None:
    """Save without what says where and how often this process compiled, so that equal nets are equal bytes."""
    import torch

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        saved, scratch = Path(folder) / "saved.pt", Path(folder) / "model.pt"  # an archive's own folder is called so
        torch.jit.save(script, str(saved))
        reader = torch._C.PyTorchFileReader(str(saved))
        # .data/ the writer makes itself; debug_pkl names files and lines of Python
        names = [n for n in reader.get_all_records() if not n.startswith(".data/") and not n.endswith(".debug_pkl")]
        alone = sum(name.startswith("code/") for name in names) == 1  # one class needs no number to be told apart
        writer = torch._C.PyTorchFileWriter(str(scratch))
        for name in names:
            record = reader.get_record(name)
            if alone and name.startswith(("code/", "data.pkl")):
                name, record = re.sub(r"/___torch_mangle_\d+", "", name), _NUMBER.sub(b"", record)
            writer.write_record(name, record, len(record))
        writer.write_end_of_file()
        del writer
        scratch.rename(path)


def open_file(path: Path, native: NativeNet) -> Ask:
    """Read `model.pt` back; ask it as Triton's backend does, by position."""
    import torch

    with quiet():
        script = torch.jit.load(str(path), map_location="cpu")

    def ask(rows: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        with quiet(), torch.inference_mode():
            tensors = [torch.from_numpy(np.ascontiguousarray(rows[its.name])) for its in native.inputs]
            return [answer.numpy() for answer in script(*tensors)]

    return ask


def _parameters(instances: int) -> dict[str, str]:
    """One thread an instance; as many first calls are not spent on finding out what could be fused.

    No INTER_OP_THREAD_COUNT: the second model that says it ends the server of 24.10.
    """
    return {
        "INTRA_OP_THREAD_COUNT": "1",
        "DISABLE_OPTIMIZED_EXECUTION": "true",
        "ENABLE_WEIGHT_SHARING": "true",
        "INFERENCE_MODE": "true",
    }


PYTORCH = NativeBackend(
    platform="pytorch_libtorch",
    file="model.pt",
    frameworks=("PyTorch", "TorchScript"),
    takes="PyTorch's nn.Module, .pt2 and TorchScript",
    parameters=_parameters,
    write=write,
    open=open_file,
)
