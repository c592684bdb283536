"""The whole way: artifacts -> Stack -> lower -> place -> check -> write."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tristage.errors import ExportError, StackError
from tristage.export.check import Parity, check_answers, check_parity, open_model
from tristage.export.choices import choose, choose_ensemble
from tristage.export.cut import cut
from tristage.export.fallbacks import Fallback, try_fallbacks
from tristage.export.golden import check_golden, golden_columns, read_golden_rows, write_golden, write_reference
from tristage.export.lower import lower, narrowed
from tristage.export.measured import Measured, measure_weights
from tristage.export.net import Net
from tristage.export.place import Placement, fuse, place
from tristage.export.reference import output_answers, reference_answers
from tristage.export.repository import aside, check_place, write_models
from tristage.manifest import Manifest, checksums, write_manifest
from tristage.stack import Stack
from tristage.targets import TARGETS, Target, find_target
from tristage.triton_settings import TritonSettings

__all__ = ["LAYOUTS", "TARGETS", "TOLERANCE", "Exported", "Fallback", "Prepared", "export", "prepare", "write"]

LAYOUTS = ("ensemble", "fused")
TOLERANCE = 1e-5  # largest difference from the training library that an export may have, relative above 1
_LIBRARIES = (
    "tristage",
    "nvtabular",
    "xgboost-cpu",
    "xgboost",
    "lightgbm",
    "catboost",
    "scikit-learn",
    "treelite",
    "faiss-cpu",
    "torch",
    "tensorflow-cpu",
    "tensorflow",
    "keras",
    "onnx",
    "onnxruntime",
    "numpy",
    "pandas",
)


@dataclass(frozen=True)
class Prepared:
    """A stack that is ready to be written, in any layout: converted, placed and compared with its training libraries.

    Attributes:
        placement: one Triton model per step.
        target: where it will be served.
        parity: how far it is from the training libraries on the golden rows; None without golden rows.
        golden: the golden rows that it was compared on, a pyarrow.Table; None without.
        expected: output -> what the training libraries answered for them.
        triton: what the stack says of how Triton is to run the models.
        scratch: holds the large tables until `write` links or copies them; vanishes with the last that refers to it.
        fallbacks: the steps that NVTabular itself serves.
        rewrites: step -> what the exact rewrites of its graph found.
        measured: how far narrow weights take the placement from the training libraries, which `parity` compares with
            the weights as they were trained; None where all are.
    """

    placement: Placement
    target: Target
    parity: Parity | None
    golden: Any
    expected: Mapping[str, NDArray[Any]]
    triton: TritonSettings
    scratch: tempfile.TemporaryDirectory[str]
    fallbacks: tuple[Fallback, ...] = ()
    rewrites: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    measured: Measured | None = None


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        path: the model repository.
        manifest: its manifest.
        parity: how far it is from the training libraries on the golden rows; None without golden rows.
        fallbacks: the steps that NVTabular itself serves, since they could not be compiled, and what that costs: as
            measured, so that it stands here and not in the manifest, whose bytes are the same every time.
    """

    path: Path
    manifest: Manifest
    parity: Parity | None
    fallbacks: tuple[Fallback, ...] = ()


def export(
    stack: Stack,
    path: Path | str,
    *,
    target: str = "pip-cpu",
    layout: str | None = None,
    max_batch: int = 1024,
    instances: int | None = None,
    overwrite: bool = False,
    trust: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a stack as a Triton model repository: `prepare`, then `write`.

    The graphs are run in this process on the golden rows before anything is written: a repository that answers
    otherwise than the training libraries is never made.

    Args:
        stack: the trained stack.
        path: the folder to write; made if it isn't there.
        target: where it will be served; one of TARGETS.
        layout: "ensemble", every step a Triton model of its own, whose time Triton's statistics show; or "fused",
            all steps in one model, which answers small requests sooner. None: "fused" for pip-gpu, where every model
            would be a process that shares the GPU with the others; else "ensemble".
        max_batch: rows that one request may hold; clients split what is larger.
        instances: copies of every model that answer side by side, one a core; they share weights and tables. None:
            as many as the stack says, or 1.
        overwrite: replace a repository that is there, in one step.
        trust: whether saved workflows and pickled forests may be read, which runs what their pickle says; what is in
            memory needs no trust.
        on_stage: called with a few words before each stage.

    Raises:
        StackError: the stack does not fit its artifacts.
        ArtifactError: an artifact cannot be read or converted.
        ParityError: a step answers otherwise than its training library by more than TOLERANCE.
        ExportError: the folder cannot be written; what was there is untouched.
    """
    _check_layout(layout or find_target(target).layout, instances)
    check_place(Path(path), overwrite)  # now, not after minutes of converting
    folder = _nearest(Path(path).absolute().parent)
    prepared = prepare(stack, target=target, max_batch=max_batch, trust=trust, on_stage=on_stage, folder=folder)
    on_stage("writing")
    with prepared.scratch:
        return write(prepared, path, layout=layout, instances=instances, overwrite=overwrite)


def prepare(
    stack: Stack,
    *,
    target: str = "pip-cpu",
    max_batch: int = 1024,
    trust: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
    folder: Path | None = None,
) -> Prepared:
    """Convert a stack and compare it with its training libraries; arguments and errors are those of `export`.

    `folder` is where large tables wait to be written; on the disk of the repository they need not be copied. None is
    the folder of temporary files.
    """
    where = find_target(target)
    if max_batch < 1:
        raise StackError(f"max_batch is {max_batch}; a request holds at least one row")
    table = None if stack.golden is None else read_golden_rows(Path(stack.golden))
    columns = {} if table is None else golden_columns(table)
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".tristage-", dir=folder)
    except OSError as error:
        raise ExportError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error
    frame = None if table is None else table.to_pandas()
    lowered = lower(
        stack,
        columns,
        lambda step: on_stage(f"converting {step}"),
        rows=frame,
        trust=trust,
        tables=Path(scratch.name),
        native=where.native,
    )
    placement = _nullable(place(lowered, max_batch, native=where.native))
    answering = cut(placement) if where.native else placement
    rewrites = {
        step.name: tuple(map(dataclasses.asdict, step.body.rewritten))
        for step in lowered.steps
        if isinstance(step.body, Net) and step.body.rewritten
    }
    if table is None:
        for model in answering.models:
            open_model(model, answering.tables)
        fallbacks = try_fallbacks(lowered, placement, None, TOLERANCE)
        return Prepared(placement, where, None, None, {}, stack.triton, scratch, fallbacks, rewrites)
    check_golden(table, placement.signature)
    on_stage(f"asking the training libraries about {table.num_rows} golden rows")
    answers = reference_answers(lowered, frame)
    on_stage("comparing the graphs with their answers")
    inputs = _encode(table, placement)
    parity = check_parity(lowered, placement, inputs, answers, frame, TOLERANCE, answering)
    expected = {name: values[~parity.edge] for name, values in output_answers(lowered, answers).items()}
    fallbacks = try_fallbacks(lowered, placement, inputs, TOLERANCE)
    measured = None
    if any(isinstance(step.body, Net) and step.body.narrow for step in lowered.steps):
        on_stage("measuring narrow weights")
        placement = _nullable(place(narrowed(lowered), max_batch, native=where.native))
        answering = cut(placement) if where.native else placement
        measured = measure_weights(lowered, placement, answering, inputs, answers, ~parity.edge)
    golden = table.filter(~parity.edge)
    return Prepared(placement, where, parity, golden, expected, stack.triton, scratch, fallbacks, rewrites, measured)


def write(
    prepared: Prepared,
    path: Path | str,
    *,
    layout: str | None = None,
    instances: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a prepared stack as a model repository; arguments and errors are those of `export`."""
    path = Path(path)
    layout = layout or prepared.target.layout
    _check_layout(layout, instances)
    check_place(path, overwrite)
    placement = prepared.placement
    if layout == "fused":
        placement = fuse(placement)
    if prepared.target.native:
        placement = cut(placement)
    max_batch = placement.signature.max_batch
    chosen = {
        model.name: choose(
            model, max_batch, prepared.target, prepared.triton, instances, sole=len(placement.models) == 1
        )
        for model in placement.models
    }
    caches, caching = choose_ensemble(prepared.triton)
    inputs = {} if prepared.golden is None else _encode(prepared.golden, placement)
    if layout == "fused" and prepared.golden is not None:
        answers = prepared.expected if prepared.measured is None else prepared.measured.answers
        check_answers(placement, inputs, answers, TOLERANCE)
    with aside(path) as fresh:
        write_models(fresh, placement, chosen, response_cache=caches)
        if prepared.golden is not None:
            write_golden(fresh, prepared.golden, placement.signature, prepared.expected)
            write_reference(fresh, inputs, placement.signature, prepared.expected)
        manifest = Manifest(
            stack=placement.signature.stack,
            target=prepared.target.name,
            layout=layout,
            signature=placement.signature,
            models={step: model.name for model in placement.models for step in model.steps},
            versions=_versions(),
            files=checksums(fresh),
            notes=(
                *_notes(prepared.parity, prepared.measured),
                *map(_fallback_note, prepared.fallbacks),
                *_weights_notes(prepared.measured),
            ),
            rewrites=prepared.rewrites,
            choices={**{name: its.choices for name, its in chosen.items()}, placement.signature.stack: (caching,)},
            weights=None if prepared.measured is None else prepared.measured.weights,
        )
        write_manifest(fresh, manifest)
    return Exported(path, manifest, prepared.parity, prepared.fallbacks)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return folder if folder.is_dir() else _nearest(folder.parent)


def _check_layout(layout: str, instances: int | None) -> None:
    if layout not in LAYOUTS:
        raise StackError(f"there is no layout {layout}; choose one of {', '.join(LAYOUTS)}")
    if instances is not None and instances < 1:
        raise StackError(f"instances is {instances}; a model needs at least one")


def _encode(table: Any, placement: Placement) -> dict[str, Any]:
    import warnings

    from tristage.client.codec import encode

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lists are cut for the training libraries as well
        return dict(encode(table, placement.signature, unknown="ignore"))


def _nullable(placement: Placement) -> Placement:
    """Text and floats may always be null on the wire: a marker and NaN cost nothing."""
    inputs = tuple(
        dataclasses.replace(column, nullable=True)
        if column.length is None and column.dtype in ("string", "float32", "float64")
        else column
        for column in placement.signature.inputs
    )
    return dataclasses.replace(placement, signature=dataclasses.replace(placement.signature, inputs=inputs))


def _notes(parity: Parity | None, measured: Measured | None) -> tuple[str, ...]:
    if parity is None:
        return ("no golden rows: nothing proves that it answers what the training libraries answered",)
    trained = "" if measured is None else ", with its weights as they were trained,"
    notes = [
        f"{step}{trained} differs from its training library by at most {value:.2g}"
        for step, value in parity.differences.items()
    ]
    if parity.edge.any():
        notes.append(
            f"{parity.edge.sum()} golden rows were left out: they lie on a split's edge, where a tree goes the "
            f"other way for a difference in an earlier step's answer that is below {TOLERANCE:g}"
        )
    return tuple(notes)


def _weights_notes(measured: Measured | None) -> list[str]:
    if measured is None:
        return []
    notes = [
        f"{step} has {its.format} weights, {(its.before - its.after) / 1e6:,.1f} MB less, for which its answers differ "
        f"by at most {its.difference:.2g}"
        for step, its in measured.weights.steps.items()
    ]
    outputs = ", ".join(f"{output} {value:.2g}" for output, value in measured.weights.outputs.items())
    return [*notes, f"for narrow weights answers differ by at most: {outputs}; `tristage verify` allows that much"]


def _fallback_note(fallback: Fallback) -> str:
    return (
        f"{fallback.step} is served by NVTabular itself, from its saved workflow, many times slower than compiled: "
        f"{fallback.reason}"
    )


def _versions() -> dict[str, str]:
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
