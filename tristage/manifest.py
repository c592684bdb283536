"""The manifest: what a model repository holds, who wrote it, and the checksum of every file in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tristage.columns import Signature
from tristage.errors import RepositoryError
from tristage.triton_settings import Choice
from tristage.tuning import Tuning
from tristage.weights import NarrowWeights

__all__ = [
    "FEATURES",
    "GOLDEN",
    "KEPT",
    "MANIFEST",
    "REFERENCE",
    "Manifest",
    "check_files",
    "checksums",
    "exchanged_tables",
    "feature_tables",
    "has_rate_limits",
    "keeps_answers",
    "model_of",
    "read_manifest",
    "sha256",
    "write_manifest",
]

MANIFEST = "manifest.json"
GOLDEN = "golden.parquet"
REFERENCE = "reference.json"  # how the golden rows' columns and answers are distributed
FEATURES = ".features"  # ends the names of folders whose tables change without an export, and vouch for themselves
KEPT = "README.md"  # the one file of a repository that belongs to its owner, not to an export
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What an export wrote.

    Attributes:
        stack: the stack's name, which is the ensemble's.
        target: the target it was placed on, such as "pip-cpu".
        layout: "ensemble" (a Triton model per step) or "fused" (one for all).
        signature: the columns that go in and come out.
        models: step name -> Triton model name.
        versions: library -> version that read the artifacts and wrote the repository.
        files: POSIX path relative to the repository -> SHA-256 in hexadecimal; every file but the manifest and README.
        notes: what the exporter wants known, one sentence each.
        tuned: how fast each engine answers each forest step, as `tristage tune` measured; None before.
        rewrites: step -> what the exact rewrites of its graph found, and what they saved.
        choices: Triton model -> its settings, and why each is so.
        weights: what narrow weights save, and by how much answers differ for them; None where all are as trained.
    """

    stack: str
    target: str
    layout: str
    signature: Signature
    models: Mapping[str, str]
    versions: Mapping[str, str]
    files: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())
    tuned: Tuning | None = None
    rewrites: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    choices: Mapping[str, tuple[Choice, ...]] = field(default_factory=dict)
    weights: NarrowWeights | None = None


def keeps_answers(manifest: Manifest) -> bool:
    """Whether the ensemble answers equal requests from Triton's response cache."""
    return any(_is(choice, "response_cache", "on") for choice in manifest.choices.get(manifest.stack, ()))


def has_rate_limits(manifest: Manifest) -> bool:
    """Whether models share resources that Triton's rate limiter deals out."""
    return any(
        choice.setting == "resources" and not _is(choice, "resources", "none")
        for choices in manifest.choices.values()
        for choice in choices
    )


def _is(choice: Choice, setting: str, value: str) -> bool:
    return (choice.setting, choice.value) == (setting, value)


def write_manifest(repository: Path, manifest: Manifest) -> None:
    """Write `manifest.json`; the same manifest gives the same bytes."""
    document: dict[str, Any] = {"format": FORMAT, **asdict(manifest)}
    (repository / MANIFEST).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_manifest(repository: Path) -> Manifest:
    """Read a repository's manifest.

    Raises:
        RepositoryError: no manifest, or one that is not JSON, of another format, or incomplete.
    """
    path = repository / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RepositoryError(
            f"{repository} holds no {MANIFEST}, so it is not a tristage repository (or is incomplete); "
            f"write one with: tristage export stack.yaml -o {repository}"
        ) from None
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{path} cannot be read ({error}); export the stack again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise RepositoryError(
            f"{path} has format {found!r}, this tristage reads {FORMAT}; export the stack again with this version"
        )
    try:
        return Manifest(
            stack=document["stack"],
            target=document["target"],
            layout=document["layout"],
            signature=Signature.from_json(json.dumps(document["signature"])),
            models=dict(document["models"]),
            versions=dict(document["versions"]),
            files=dict(document["files"]),
            notes=tuple(document["notes"]),
            tuned=None if document["tuned"] is None else Tuning.of(document["tuned"]),
            rewrites={step: tuple(found) for step, found in document.get("rewrites", {}).items()},
            choices={model: tuple(Choice(**one) for one in its) for model, its in document.get("choices", {}).items()},
            weights=None if document.get("weights") is None else NarrowWeights.of(document["weights"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RepositoryError(f"{path} is incomplete ({error!r}); export the stack again") from error


def model_of(served: str) -> str:
    """The model of an export that a server calls `served`: with a number behind it where it was loaded by a reload."""
    name, dot, number = served.rpartition(".")
    return name if dot and number.isdigit() else served


def checksums(repository: Path) -> dict[str, str]:
    """SHA-256 of every file of a repository but its manifest and README, by POSIX path, sorted."""
    return {path.relative_to(repository).as_posix(): sha256(path) for path in _files(repository)}


def check_files(repository: Path, manifest: Manifest) -> None:
    """Check that every file the manifest lists is there, and unchanged, and that no model was added.

    Raises:
        RepositoryError: names the files that are missing, changed or strange.
    """
    missing = [name for name in manifest.files if not (repository / name).is_file()]
    changed = [
        name for name, digest in manifest.files.items() if name not in missing and sha256(repository / name) != digest
    ]
    strange = sorted({path.relative_to(repository).as_posix() for path in _files(repository)} - set(manifest.files))
    faults = [
        f"{word}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for word, names in (("missing", missing), ("changed since export", changed), ("not of this export", strange))
        if names
    ]
    if faults:
        raise RepositoryError(
            f"{repository} does not match its {MANIFEST} ({'; '.join(faults)}); export the stack again"
        )


def _files(repository: Path) -> Iterator[Path]:
    own = {repository / MANIFEST, repository / KEPT}
    for path in sorted(repository.rglob("*")):
        # Python writes bytecode beside the models it runs
        if any(folder.endswith(FEATURES) for folder in path.relative_to(repository).parts[:-1]):
            continue
        if path.is_file() and path not in own and path.suffix != ".pyc" and path.name not in (".gitignore", ".gitkeep"):
            yield path


def feature_tables(repository: Path) -> list[Path]:
    """The folders of a repository's tables of features, see `tristage.serving.feature_files`, sorted."""
    return sorted(path for path in repository.glob(f"*/1/**/*{FEATURES}") if path.is_dir())


def exchanged_tables(repository: Path) -> tuple[str, ...]:
    """The features steps whose table is another than that of the export, which a table's folder is called after."""
    found = []
    for folder in feature_tables(repository):
        step, _, version = folder.name.removesuffix(FEATURES).rpartition("-")
        if (folder / "CURRENT").read_text(encoding="utf-8").strip() != version:
            found.append(step)
    return tuple(found)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
