"""repository -> the same with the fastest engines, and in its manifest what was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tristage.errors import ExportError, RepositoryError, StackError
from tristage.export.repository import aside, forest_files
from tristage.export.tuning.forest import Measure
from tristage.export.tuning.measure import measure as _measure
from tristage.export.tuning.walk import Golden, Walk
from tristage.manifest import GOLDEN, Manifest, check_files, read_manifest, sha256, write_manifest
from tristage.serving.program_file import PROGRAM_FILE, ProgramFile, read_calls
from tristage.targets import find_target
from tristage.tuning import ForestTuning, Tuning

__all__ = ["BATCHES", "tune"]

BATCHES = (1, 16, 256, 4096)
_LIBRARIES = ("tristage", "onnxruntime", "scikit-learn-intelex", "xgboost-cpu", "xgboost", "treelite")


def tune(
    repository: Path | str,
    *,
    batches: Sequence[int] = BATCHES,
    trust: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
    measure: Measure = _measure,
) -> Manifest:
    """Measure every engine on every forest step of a repository, and have the fastest answer at each batch size.

    Every engine that can take a step's forests is compared with the training library on the golden rows' own features,
    and on rows drawn around the trees' thresholds; those that are more than 1e-6 off are left out. The others are
    measured on one thread, and the repository is replaced by one whose programs name who answers, aside and then
    renamed: a server that is up keeps the files that it opened.

    Args:
        repository: what `export` wrote, or `tune` before.
        batches: rows of a call to measure; what is above the repository's largest batch is measured at that.
        trust: whether the saved workflow of a step that NVTabular itself serves may be read, which runs its pickle;
            without, the forests behind it are measured on drawn rows alone.
        on_stage: called with a step's name before it is measured.
        measure: (engines, rows, groups, batch) -> milliseconds of each engine.

    Returns:
        The new manifest; `tuned` says what was measured, and is None where the repository has no forests.

    Raises:
        StackError: a batch size is below 1.
        RepositoryError: it is none, is damaged, or is served by Triton's own backends.
        ParityError: with the chosen engines, more golden rows are answered otherwise than rounding explains.
        ExportError: the new one cannot be written; what was there is untouched.
    """
    repository = Path(repository)
    if not batches or min(batches) < 1:
        raise StackError("--batches takes batch sizes of one row at least, such as 1,16,256")
    manifest = read_manifest(repository)
    if find_target(manifest.target).native or find_target(manifest.target).torch:
        who = "Triton's own backends answer" if find_target(manifest.target).native else "the GPU answers"
        raise RepositoryError(
            f"{repository} was exported for {manifest.target}, where {who} forests; there is nothing to choose"
        )
    check_files(repository, manifest)
    if not read_calls(repository, set(manifest.models.values())):
        return replace(manifest, tuned=None)
    sizes = sorted({min(batch, manifest.signature.max_batch) for batch in batches})
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".tristage-", dir=repository.resolve().parent)
    except OSError as error:
        raise ExportError(f"{error.filename} cannot be written: {error.strerror or error}") from error
    with scratch as folder:
        walk = Walk(repository, manifest, Path(folder), sizes, trust, on_stage, measure)
        programs, forests = walk.tune()
        return _write(repository, manifest, programs, Path(folder), forests, walk.golden())


def _write(
    repository: Path,
    manifest: Manifest,
    programs: Mapping[str, ProgramFile],
    scratch: Path,
    forests: Mapping[str, ForestTuning],
    golden: Golden | None,
) -> Manifest:
    """The repository with other programs and engines' files, and maybe fewer golden rows; what stays is linked."""
    old, new = set(), set()
    for model, program in programs.items():
        version = Path(model) / "1"
        before = ProgramFile.read(repository / version / PROGRAM_FILE)
        old |= {(version / choice.file).as_posix() for call in before.calls() for choice in call.engines}
        new |= {(version / name).as_posix() for call in program.calls() for name in forest_files(call, scratch)}
    replaced = {f"{model}/1/{PROGRAM_FILE}" for model in programs} | ({GOLDEN} if golden else set())
    kept = [name for name in manifest.files if name not in replaced | old]  # engines' files are of this tristage
    with aside(repository) as fresh:
        for name in kept:
            _link(repository.resolve() / name, fresh / name)
        for name in sorted(new - set(kept)):
            shutil.copyfile(scratch / Path(name).name, fresh / name)
        for model, program in programs.items():
            (fresh / model / "1" / PROGRAM_FILE).write_text(program.to_json(), encoding="utf-8")
        if golden is not None:
            import pyarrow.parquet as pq

            pq.write_table(golden.table, fresh / GOLDEN, compression="zstd")
        digests = {name: manifest.files[name] for name in kept}
        digests |= {name: sha256(fresh / name) for name in sorted((new - set(kept)) | replaced)}
        made = replace(
            manifest,
            files=dict(sorted(digests.items())),
            notes=(*manifest.notes, *([] if golden is None else [golden.note])),
            tuned=Tuning(_processor(), 1, _versions(), forests),
        )
        write_manifest(fresh, made)
    return made


def _link(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
