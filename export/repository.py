"""Writes a model repository: aside first, then renamed into place, so that a failure leaves what was there."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from tristage.errors import ExportError
from tristage.export.choices import Chosen
from tristage.export.columns import pack
from tristage.export.config import CHECKPOINT_FILE, ensemble_config, model_config
from tristage.export.net.backends import BACKENDS
from tristage.export.net.native import NativeNet
from tristage.export.place import Checkpoint, Placement
from tristage.export.split import Columns, call_of, split
from tristage.manifest import FEATURES, KEPT, MANIFEST
from tristage.serving.feature_files import CURRENT
from tristage.serving.forest.recipe import Recipe
from tristage.serving.program_file import (
    PROGRAM_FILE,
    CandidatesCall,
    FeaturesCall,
    ForestCall,
    Part,
    ProgramFile,
    RecurrenceCall,
    SearchCall,
    SourceCall,
)
from tristage.serving.workflow_file import WORKFLOW_FILE, WorkflowFile

__all__ = ["aside", "check_place", "forest_files", "save_model", "write_models"]

_RUNNER = "from tristage.serving.runner import TritonPythonModel  # noqa: F401\n"
# what a repository's folder may hold without being one
_OWN = (KEPT, ".gitignore", ".gitkeep")


def check_place(path: Path, overwrite: bool) -> None:
    """Refuse to export over something that `overwrite` doesn't cover.

    Raises:
        ExportError: the path is a file, holds a repository and `overwrite` is off, or holds something else.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise ExportError(f"{path} is a file; give a folder to export to")
    found = sorted(entry.name for entry in path.iterdir() if entry.name not in _OWN)
    if not found:
        return
    if not (path / MANIFEST).is_file():
        raise ExportError(f"{path} holds {found[0]}, which no export of tristage wrote; give an empty or new folder")
    if not overwrite:
        raise ExportError(f"{path} already holds an exported stack; give another folder, or --overwrite to replace it")


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place when the block ends well, and vanishes when it doesn't.

    Raises:
        ExportError: the disk is full, or the folder cannot be written; `path` is as it was.
    """
    path = path.resolve()
    fresh: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        fresh.chmod(0o755)
        yield fresh
        _swap(fresh, path)
    except OSError as error:
        raise ExportError(
            f"{path} could not be written: {error.strerror or error} ({error.filename or fresh or path.parent}); "
            "what was there before is untouched"
        ) from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, path: Path) -> None:
    """Put what `fresh` holds where `path` is, keeping the owner's own files.

    The folder itself stays, since a container may have it mounted, and what is in it is renamed, the manifest first on
    the way out and last on the way in: without one, nobody takes the folder for an export.
    """
    if not path.exists():
        fresh.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    undo: list[tuple[Path, Path]] = []
    try:
        moves = [(entry, old / entry.name) for entry in _in_order(path)]
        moves += [(entry, path / entry.name) for entry in reversed(_in_order(fresh))]
        for source, to in moves:
            source.rename(to)
            undo.append((to, source))
    except BaseException:  # an interrupt too must not leave half of each
        for source, to in reversed(undo):
            source.rename(to)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _in_order(folder: Path) -> list[Path]:
    """What an export put into a folder, its manifest first."""
    found = sorted(entry for entry in folder.iterdir() if entry.name not in _OWN)
    return sorted(found, key=lambda entry: entry.name != MANIFEST)


def write_models(
    repository: Path, placement: Placement, chosen: Mapping[str, Chosen], *, response_cache: bool = False
) -> None:
    """Write every model's folder: configuration, as chosen for it, and what it computes; and the ensemble's."""
    for model in placement.models:
        version = repository / model.name / "1"
        version.mkdir(parents=True)
        config = model_config(model, placement.signature.max_batch, chosen[model.name])
        (repository / model.name / "config.pbtxt").write_text(config)
        if isinstance(model.graph, Checkpoint):
            assert placement.tables is not None
            _link(model.graph.file, version, placement.tables, CHECKPOINT_FILE)
            continue
        if isinstance(model.graph, NativeNet):
            assert placement.tables is not None
            _link_net(model.graph, version, placement.tables)
            continue
        if chosen[model.name].backend == "python":
            (version / "model.py").write_text(_RUNNER)
        save_model(model.graph, version, placement.tables, columns=not model.alone)
    ensemble = repository / placement.signature.stack
    (ensemble / "1").mkdir(parents=True)
    # Triton wants the version's folder; a file keeps it alive in archives that drop empty folders
    (ensemble / "1" / ".keep").touch()
    (ensemble / "config.pbtxt").write_text(ensemble_config(placement, response_cache))


def _link_net(native: NativeNet, version: Path, tables: Path) -> None:
    """Put a net's file, or all of its folder, where the framework's backend looks for it."""
    source, called = tables / native.file, BACKENDS[native.backend].file
    if not source.is_dir():
        _link(native.file, version, tables, called)
        return
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if path.is_dir():
            (version / called / inside).mkdir(parents=True)
        else:
            (version / called / inside.parent).mkdir(parents=True, exist_ok=True)
            _link(f"{native.file}/{inside}", version, tables, f"{called}/{inside}")


def save_model(
    graph: onnx.ModelProto | WorkflowFile, folder: Path, tables: Path | None, *, columns: bool = True
) -> None:
    """Save what a model computes, so that the runner finds it; large tensors in files that are memory-mapped.

    Args:
        graph: a graph; saved as `graph.onnx`, or where engines answer parts of it, as a program. Or a workflow's file.
        folder: where it goes.
        tables: the folder of the tables and forests that it refers to; they are linked, or copied to another disk.
        columns: whether parts may be left to the columns engine.
    """
    if isinstance(graph, WorkflowFile):
        (folder / WORKFLOW_FILE).write_text(graph.to_json(), encoding="utf-8")
        return
    program = split(graph, columns=columns)
    if program is None or (len(program.parts) == 1 and isinstance(program.parts[0], onnx.ModelProto)):
        _save_graph(graph, folder / "graph.onnx", tables)
        return
    parts: list[Part] = []
    for number, part in enumerate(program.parts):
        if isinstance(part, Columns):
            _save_graph(part.graph, folder / f"graph{number}.onnx", tables)
            parts.append(pack(part.graph, folder / f"columns{number}.bin", f"graph{number}.onnx"))
            continue
        if isinstance(part, onnx.ModelProto):
            _save_graph(part, folder / f"graph{number}.onnx", tables)
            parts.append(f"graph{number}.onnx")
            continue
        call = call_of(part)
        assert tables is not None
        if isinstance(call, FeaturesCall):
            parts.append(_first_version(call, folder, tables))
            continue
        for name in _files(call, tables):
            _link(name, folder, tables)
        parts.append(call)
    (folder / PROGRAM_FILE).write_text(ProgramFile(tuple(parts), program.outputs).to_json(), encoding="utf-8")


def _first_version(call: FeaturesCall, folder: Path, tables: Path) -> FeaturesCall:
    """Write a table's folder, with the one version that it has, and say where it is."""
    name = f"{call.step}-{call.features}{FEATURES}"
    for path in sorted((tables / call.features).rglob("*")):
        if path.is_file():
            inside = path.relative_to(tables).as_posix()
            _link(inside, folder, tables, f"{name}/{inside}")
    (folder / name / CURRENT).write_text(f"{call.features}\n", encoding="utf-8")
    return dataclasses.replace(call, features=name)


def _files(call: ForestCall | RecurrenceCall | SearchCall | CandidatesCall | SourceCall, tables: Path) -> list[str]:
    """The files of a folder that a call names, in folders of it too."""
    match call:
        case ForestCall():
            return forest_files(call, tables)
        case RecurrenceCall():
            return [call.recurrence]
        case SearchCall():
            return [call.index]
        case SourceCall():
            return []
        case CandidatesCall():
            inside = sorted(path for path in (tables / call.candidates).rglob("*") if path.is_file())
            return [path.relative_to(tables).as_posix() for path in inside]


def forest_files(call: ForestCall, folder: Path) -> list[str]:
    """The files of a folder that a forest needs: its engines', its recipe, and the trees that the recipe names."""
    engines = [choice.file for choice in call.engines]
    return list(dict.fromkeys([*engines, call.recipe, *Recipe.read(folder / call.recipe).files()]))


def _save_graph(graph: onnx.ModelProto, path: Path, tables: Path | None) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)  # saving moves the tensors out of the model it is given
    onnx.save_model(
        copy,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.stem}.bin",
        size_threshold=4096,
    )
    with contextlib.suppress(OSError), path.open("rb") as stream:
        os.fsync(stream.fileno())
    for name in _table_files(graph):
        _link(name, path.parent, tables)


def _link(name: str, folder: Path, tables: Path | None, called: str | None = None) -> None:
    assert tables is not None
    path = folder / (called or name)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.hardlink_to(tables / name)
    except OSError:
        shutil.copyfile(tables / name, path)
    path.chmod(0o644)


def _table_files(graph: onnx.ModelProto) -> set[str]:
    external = (t for t in graph.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
    return {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
