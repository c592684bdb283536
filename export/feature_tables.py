"""A table of features -> a program from ids to features, and its versions in an exported repository."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tristage.columns import Column
from tristage.errors import ArtifactError, InputError, ParityError, StackError
from tristage.export.features import IDS, Features, read_table
from tristage.export.lowered import Feed, LoweredStep, Source, Workflow
from tristage.export.nested import Lower, ask_of, keep, within, write_program
from tristage.export.net.outputs import NetOutput
from tristage.export.place import Placement, place
from tristage.export.references import Reader
from tristage.export.workflow import InterpretedWorkflow
from tristage.manifest import feature_tables
from tristage.serving.feature_files import ABOUT, CURRENT, About, current
from tristage.stack import FeaturesStep, Stack, WorkflowStep

__all__ = [
    "KEPT_VERSIONS",
    "FeatureTable",
    "compile_table",
    "find_tables",
    "go_back",
    "lower_table",
    "one_id",
    "replace_table",
]

KEPT_VERSIONS = 3  # of a table: the one that is served, and those before it
_MAX_BATCH = 4096
_SCRATCH = ".new-"  # begins the name of what is not finished
_CHECKED = 2000  # ids of a new table that its program is asked about before it is served


@dataclass(frozen=True)
class FeatureTable:
    """A table of a repository.

    Attributes:
        step: the step that it is.
        folder: the folder of its versions.
        version: the one that is served.
        before: those before it, the latest first.
        about: what the served one holds.
    """

    step: str
    folder: Path
    version: str
    before: tuple[str, ...]
    about: About


def lower_table(name: str, step: FeaturesStep, reader: Reader, lower: Lower, tables: Path) -> LoweredStep:
    """Lower a features step.

    Args:
        name: the step's.
        step: the step.
        reader: resolves what it reads.
        lower: (stack, its raw columns) -> the same, lowered.
        tables: the folder of large tables, which the program's folder is made in.

    Raises:
        StackError: its key is several columns, or a list.
        ArtifactError: the table cannot be read, or its ids cannot be looked up exactly.
    """
    source = one_id(name, step, reader)
    column = source.column
    frame = read_table(name, step.features, step.id_column)
    body = compile_table(name, frame, Column(step.id_column, column.dtype, nullable=column.nullable), lower, tables)
    return LoweredStep(name, body, (Feed(IDS, (source,), column.wire_dtype),), body.columns)


def one_id(name: str, step: FeaturesStep, reader: Reader) -> Source:
    """The column that a features step finds its ids in.

    Raises:
        StackError: it is several, or a list.
    """
    sources = reader.many(step.references())
    if len(sources) != 1 or sources[0].column.length is not None:
        raise StackError(f"step {name}: its key {step.key} is not one id for a row; name one column of ids", step=name)
    return sources[0]


def compile_table(name: str, frame: Any, key: Column, lower: Lower, tables: Path) -> Features:
    """Compile a table as the workflow that NVTabular joins it with.

    Args:
        name: the step's.
        frame: the table, as `read_table` gives it.
        key: its ids, as a request sends them.
        lower: (stack, its raw columns) -> the same, lowered.
        tables: the folder that the program's folder is made in.

    Raises:
        ArtifactError: its ids cannot be looked up exactly, or are of another kind than a request's.
    """
    text = frame[key.name].dtype == object
    if text != (key.dtype == "string"):
        theirs, ours = ("text", key.dtype) if text else (str(frame[key.name].dtype), key.dtype)
        raise ArtifactError(f"step {name}: the table's ids are {theirs}, and a request's are {ours}; make them alike")
    features = [str(column) for column in frame.columns if column != key.name]
    with within(name):
        stack = Stack(
            "table", {"join": WorkflowStep(_joining(frame, key))}, {each: f"join.{each}" for each in features}
        )
        inner = lower(stack, {key.name: key})
        placement = place(inner, _MAX_BATCH)
    (step,) = inner.steps
    served = step.body.served if isinstance(step.body, Workflow) else None
    if isinstance(served, InterpretedWorkflow):
        raise ArtifactError(f"step {name}: {served.reason}, so that the table cannot be compiled")
    outputs = tuple(NetOutput(column.name, 1, column.dtype) for column in placement.signature.outputs)

    return Features(_save(placement, frame, key, outputs, tables), key.name, outputs, placement, ask_of(inner, (key,)))


def _joining(frame: Any, key: Column) -> Any:
    """NVTabular's workflow that joins the table, fitted on its first id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nvtabular

        joined = [key.name] >> nvtabular.ops.JoinExternal(frame, on=[key.name])
        workflow = nvtabular.Workflow(joined)
        ids = frame[[key.name]].head(1)
        return workflow.fit(nvtabular.Dataset(ids if key.dtype == "string" else ids.astype(key.dtype)))


def _save(placement: Placement, frame: Any, key: Column, outputs: tuple[NetOutput, ...], tables: Path) -> str:
    """Write the program and what it holds into a folder, whose name tells its content; returns that."""
    folder, files = write_program(placement, tables)
    columns = {output.name: output.dtype for output in outputs}
    about = About(key.name, key.dtype, columns, len(frame), files).to_json()
    (folder / ABOUT).write_text(about, encoding="utf-8")
    return keep(folder, about)


def find_tables(repository: Path) -> list[FeatureTable]:
    """The tables of a repository.

    Raises:
        RepositoryError: one of them is damaged.
    """
    found = []
    for folder in feature_tables(repository):
        version = current(folder)
        others = [each for each in folder.iterdir() if (each / ABOUT).is_file() and each != version]
        before = sorted(others, key=lambda each: each.stat().st_mtime_ns, reverse=True)
        step = folder.name.rpartition("-")[0]
        about = About.read(version)
        found.append(FeatureTable(step, folder, version.name, tuple(each.name for each in before), about))
    return found


def table_of(repository: Path, step: str) -> FeatureTable:
    """The table of one step.

    Raises:
        InputError: there is none.
        RepositoryError: it is damaged.
    """
    tables = {table.step: table for table in find_tables(repository)}
    if step not in tables:
        has = f"it has {', '.join(tables)}" if tables else "it has none"
        raise InputError(f"{repository} has no table of features of a step {step}; {has}")
    return tables[step]


def replace_table(repository: Path, step: str, artifact: Any, lower: Lower) -> FeatureTable:
    """Have another table served: written aside, compared with what NVTabular answers, then exchanged in one go.

    Servers that run change over by themselves, each between two requests.

    Args:
        repository: an exported repository.
        step: the features step.
        artifact: the new table: a Parquet file, a pandas.DataFrame or an Arrow table.
        lower: (stack, its raw columns) -> the same, lowered.

    Raises:
        InputError: the repository has no such table.
        ArtifactError: the new one cannot be read, or has other features than the one that is served.
        ParityError: its program answers otherwise than NVTabular.
        RepositoryError: the table that is served is damaged.
    """
    table = table_of(repository, step)
    frame = read_table(step, artifact, table.about.ids)
    with tempfile.TemporaryDirectory(dir=table.folder, prefix=_SCRATCH) as scratch:
        body = compile_table(step, frame, Column(table.about.ids, table.about.dtype), lower, Path(scratch))
        columns = {output.name: output.dtype for output in body.outputs}
        if columns != table.about.columns:
            odd = sorted(set(columns.items()) ^ set(table.about.columns.items()))
            raise ArtifactError(
                f"step {step}: the new table holds other features than the one that is served "
                f"({', '.join(dict.fromkeys(name for name, _ in odd))}); export the stack again with it"
            )
        _check(step, body, frame)
        version = table.folder / body.folder
        if not version.exists():
            (Path(scratch) / body.folder).rename(version)
    _point(table.folder, version.name)
    return _pruned(repository, step)


def go_back(repository: Path, step: str) -> FeatureTable:
    """Have the version served that was written before the one that is.

    Raises:
        InputError: the repository has no such table, or it has no version before.
        RepositoryError: the table is damaged.
    """
    table = table_of(repository, step)
    if not table.before:
        raise InputError(f"the table of {step} has no version before {table.version}")
    _point(table.folder, table.before[0])
    return table_of(repository, step)


def _check(step: str, body: Features, frame: Any) -> None:
    """Ask the program about some of the table's ids, and about one that it has not."""
    from tristage.export.check import run_placement

    key = body.placement.signature.inputs[0]
    known = frame[body.ids].to_numpy()
    some = known[np.linspace(0, len(known) - 1, min(len(known), _CHECKED)).astype(int)]
    strange = np.array(["\x01"], object) if key.dtype == "string" else np.array([known.max()], known.dtype) + 1
    ids = np.concatenate([some, strange]).astype(object if key.dtype == "string" else key.dtype).reshape(-1, 1)
    expected = body.ask({key.name: ids})
    tensors = run_placement(body.placement, {key.name: ids})
    for column in body.placement.signature.outputs:
        made = tensors[column.name].reshape(-1)
        if not np.array_equal(made, np.asarray(expected[column.name]).reshape(-1), equal_nan=True):
            raise ParityError(f"step {step}: the table's program answers {column.name} otherwise than NVTabular")


def _point(folder: Path, version: str) -> None:
    """Exchange CURRENT in one go."""
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=_SCRATCH, delete=False) as aside:
        aside.write(f"{version}\n")
    path = Path(aside.name)
    path.chmod(0o644)
    os.utime(folder / version)  # the order in which versions were served
    path.replace(folder / CURRENT)


def _pruned(repository: Path, step: str) -> FeatureTable:
    """Remove the oldest versions; a server that still has one open keeps what it mapped."""
    table = table_of(repository, step)
    for version in table.before[KEPT_VERSIONS - 1 :]:
        with suppress(OSError):
            shutil.rmtree(table.folder / version)
    return table_of(repository, step)
