"""The stack of a candidates step: lowered as any stack, fused into one program, and written beside the large tables."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tristage.columns import Column
from tristage.errors import ArtifactError, StackError
from tristage.export.candidates import Candidates
from tristage.export.lowered import Feed, LoweredStack, LoweredStep, Source
from tristage.export.net.outputs import NetOutput
from tristage.export.place import Placement, fuse, place
from tristage.export.reference import output_answers, reference_answers
from tristage.export.references import Reader, some
from tristage.export.repository import save_model
from tristage.manifest import sha256
from tristage.stack import CandidatesStep, ListInput, NetStep, Stack

__all__ = ["Lower", "ask_of", "frame_of", "keep", "nest", "within", "write_program"]

Lower = Callable[[Stack, Mapping[str, Column]], LoweredStack]
_MAX_BATCH = 4096  # candidates that are compared at once, at export


def nest(name: str, step: CandidatesStep, reader: Reader, lower: Lower, tables: Path) -> LoweredStep:
    """Lower a candidates step.

    Args:
        name: the step's.
        step: the step.
        reader: resolves what it reads.
        lower: (stack, its raw columns) -> the same, lowered.
        tables: the folder of large tables, which the program's folder is made in.

    Raises:
        StackError: its stack reads a raw column that the step does not give, or the other way round, or one of another
            type.
        ArtifactError: an artifact of its stack cannot be read or converted, or a workflow could not be compiled.
    """
    sources = {column: reader.many(references) for column, references in (*step.each.items(), *step.shared.items())}
    for given in sources.values():
        _check_alike(name, given)
    count = _count(name, {column: sources[column] for column in step.each})
    known = {column: _scalar(column, sources[column]) for column in step.each}
    known |= {column: _whole(column, sources[column]) for column in step.shared}
    stack = _inner(name, step, known)
    with within(name):
        inner = lower(stack, known)
        placement = place(inner, _MAX_BATCH)
    asked = {column.name: column for column in placement.signature.inputs}
    _check_given(name, step, inner, asked)
    feeds = []
    for column, given in sources.items():
        if column in asked:  # else nothing that is answered depends on it
            _check_dtype(name, column, given[0].column, asked[column].wire_dtype)
            feeds.append(Feed(column, tuple(given), asked[column].wire_dtype))
    outputs = []
    for output in placement.signature.outputs:
        if output.length is not None or output.dtype == "string":
            kind = "a list" if output.length is not None else "text"
            raise StackError(
                f"step {name}: output {output.name} of its stack is {kind}; answer one number for a candidate",
                step=name,
            )
        outputs.append(NetOutput(output.name, count, output.dtype))
    columns = tuple(asked.values())
    body = Candidates(
        _save(placement, tables),
        count,
        tuple(column for column in step.each if column in asked),
        tuple(column for column in step.shared if column in asked),
        tuple(outputs),
        inner,
        placement,
        ask_of(inner, columns),
    )
    return LoweredStep(name, body, tuple(feeds), body.columns)


def ask_of(
    inner: LoweredStack, columns: Sequence[Column]
) -> Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]:
    """A step's stack as its training libraries answer it: its tensors -> output -> [rows]."""
    return lambda tensors: output_answers(inner, reference_answers(inner, frame_of(tensors, columns)))


def frame_of(tensors: Mapping[str, NDArray[Any]], columns: Sequence[Column]) -> Any:
    """Candidates' tensors as the pandas.DataFrame of raw rows that training libraries are asked about."""
    from tristage.serving.nvtabular import frame

    return frame({column.name: tensors[column.name] for column in columns}, columns)


def _inner(name: str, step: CandidatesStep, known: Mapping[str, Column]) -> Stack:
    """The step's stack, whose list columns are as long as those that it is given."""
    stack: Stack = step.stack
    for inner, net in stack.steps.items():
        if isinstance(net, NetStep) and net.weights is not None:
            raise StackError(
                f"step {name}: step {inner} of its stack has {net.weights} weights, whose difference is not measured "
                "within a step; leave them as they were trained",
                step=name,
            )
    lists = {column.name: column for column in known.values() if column.length is not None}
    for column, said in stack.inputs.items():
        its = lists.get(column)
        if its is not None and (its.length != said.max_length or repr(said.pad) not in ("None", repr(its.pad))):
            raise StackError(
                f"step {name}: lists of {column} have room for {its.length} here and the pad {its.pad!r}, and in its "
                f"stack for {said.max_length} and {said.pad!r}; declare both alike",
                step=name,
            )
    inputs = {column: ListInput(its.width, its.pad) for column, its in lists.items()}
    return dataclasses.replace(stack, inputs={**stack.inputs, **inputs}, golden=None)


def _scalar(name: str, sources: Sequence[Source]) -> Column:
    column = sources[0].column
    return Column(name, column.dtype, nullable=any(source.column.nullable for source in sources))


def _whole(name: str, sources: Sequence[Source]) -> Column:
    if len(sources) > 1:
        return Column(name, sources[0].column.dtype, len(sources))
    return dataclasses.replace(sources[0].column, name=name)


def _check_alike(name: str, sources: Sequence[Source]) -> None:
    dtypes = dict.fromkeys(source.column.wire_dtype for source in sources)
    listed = some([source.column.name for source in sources])
    if len(dtypes) > 1:
        raise StackError(f"step {name} reads {listed} as one column, which are {' and '.join(dtypes)}", step=name)
    if len(sources) > 1 and any(source.column.length is not None for source in sources):
        raise StackError(f"step {name} reads {listed} as one column; give one list column, or scalars", step=name)


def _count(name: str, each: Mapping[str, Sequence[Source]]) -> int:
    counts = {column: sum(source.column.width for source in sources) for column, sources in each.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {column}" for column, count in counts.items())
        raise StackError(f"step {name} reads {listed}; each has to hold one value for every candidate", step=name)
    return next(iter(counts.values()))


def _check_given(name: str, step: CandidatesStep, inner: LoweredStack, asked: Mapping[str, Column]) -> None:
    given = {*step.each, *step.shared}
    sources = [source for its in inner.steps for feed in its.feeds for source in feed.sources]
    reads = {source.column.name for source in sources if source.step is None}
    for column in asked:
        if column not in given:
            raise StackError(
                f"step {name}: its stack reads {column}, which neither each nor shared names; add it", step=name
            )
    for column in (*step.each, *step.shared):
        if column not in reads:
            raise StackError(
                f"step {name} gives {column}, which its stack does not read; it reads {some(sorted(reads))}", step=name
            )
    if not any(column in asked for column in step.each):
        raise StackError(
            f"step {name}: what its stack answers depends on nothing that differs from candidate to candidate "
            f"({some(list(step.each))})",
            step=name,
        )
    for column in step.each:
        if column in asked and asked[column].length is not None:
            raise StackError(
                f"step {name}: its stack reads lists of {column}, and each gives one value for a candidate; share the "
                "list, or look it up in the stack",
                step=name,
            )


def _check_dtype(name: str, column: str, source: Column, to: str) -> None:
    """Refuse a cast that a client's rows would not go through either: of texts, or to whole numbers."""
    given = source.wire_dtype
    fits = given == to or ("string" not in (given, to) and (np.can_cast(given, to, "safe") or to.startswith("float")))
    if not fits:
        raise StackError(
            f"step {name} gives {given} as {column}, and its stack reads {to}; cast one of them", step=name
        )


@contextlib.contextmanager
def within(name: str) -> Iterator[None]:
    """Errors of a step's stack say which step they are of."""
    try:
        yield
    except StackError as error:
        raise StackError(f"step {name}: {error}", step=name) from error
    except ArtifactError as error:
        raise ArtifactError(f"step {name}: {error}", path=error.path) from error


def write_program(placement: Placement, tables: Path) -> tuple[Path, dict[str, str]]:
    """Write a stack as one program into a new folder within another.

    Returns:
        The folder, and file in it -> its SHA-256; `keep` gives it its name.
    """
    (model,) = fuse(placement).models
    assert isinstance(model.graph, onnx.ModelProto)
    folder = Path(tempfile.mkdtemp(dir=tables, prefix="scratch-"))
    folder.chmod(0o755)
    save_model(model.graph, folder, tables)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return folder, {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


def keep(folder: Path, said: str, prefix: str = "") -> str:
    """Call a program's folder after what is said of its content, and return that name; one that is there stays."""
    name = f"{prefix}{hashlib.sha256(said.encode()).hexdigest()[:16]}"
    if (folder.parent / name).exists():  # two steps have the same content
        shutil.rmtree(folder)
    else:
        folder.rename(folder.parent / name)
    return name


def _save(placement: Placement, tables: Path) -> str:
    folder, files = write_program(placement, tables)
    return keep(folder, "".join(f"{name} {digest}\n" for name, digest in files.items()), "candidates-")
