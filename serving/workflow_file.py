"""`workflow.json`: which saved workflow a model runs, where a workflow could not be compiled.

A saved workflow is a pickle, and no pickle lies in a repository. What does is this file: where the workflow's folder
is, the SHA-256 of every file in it, and the columns that go in and out. The folder is read only with the user's word,
which TRUST in the environment carries from `serve` to the runner.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tristage.columns import Column
from tristage.errors import ArtifactError, RepositoryError
from tristage.manifest import sha256

__all__ = ["TRUST", "WORKFLOW_FILE", "Port", "WorkflowFile", "check_folder", "installed", "neutral_row"]

TRUST = "TRISTAGE_TRUST"  # "1": the folders that workflow.json files name may be read, which runs their pickles
WORKFLOW_FILE = "workflow.json"


@dataclass(frozen=True)
class Port:
    """A tensor that leaves a workflow: columns side by side in one dtype."""

    name: str
    dtype: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class WorkflowFile:
    """What `workflow.json` says.

    Attributes:
        folder: absolute path of the folder that Workflow.save wrote.
        files: POSIX path relative to the folder -> SHA-256 in hexadecimal.
        versions: "python" (3.11) and "nvtabular" (23.8.0): the pickle is read by the same ones.
        inputs: the raw columns that go in.
        companion: a row of them as it travels. It goes along with every batch, and its answer is dropped: NVTabular
            fails where all of a batch is null, or all its lists are empty.
        outputs: the tensors that come out.
    """

    folder: str
    files: Mapping[str, str]
    versions: Mapping[str, str]
    inputs: tuple[Column, ...]
    companion: Mapping[str, tuple[int | float | str, ...]]
    outputs: tuple[Port, ...]

    def to_json(self) -> str:
        """As text, the same for the same content."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> WorkflowFile:
        """Read what `to_json` wrote.

        Raises:
            RepositoryError: the file is not that.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            ports = (Port(p["name"], p["dtype"], tuple(Column(**c) for c in p["columns"])) for p in raw["outputs"])
            return cls(
                folder=raw["folder"],
                files=dict(raw["files"]),
                versions=dict(raw["versions"]),
                inputs=tuple(Column(**column) for column in raw["inputs"]),
                companion={name: tuple(row) for name, row in raw["companion"].items()},
                outputs=tuple(ports),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RepositoryError(f"{path} cannot be read ({error!r}); export the stack again") from error


def installed() -> dict[str, str]:
    """The versions that a saved workflow depends on, as they are here.

    Raises:
        ArtifactError: NVTabular is not installed.
    """
    try:
        nvtabular = importlib.metadata.version("nvtabular")
    except importlib.metadata.PackageNotFoundError:
        raise ArtifactError(
            "NVTabular is not installed here, and a workflow that could not be compiled is served by it: "
            "pip install 'tristage[export]'"
        ) from None
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "nvtabular": nvtabular}


def check_folder(file: WorkflowFile) -> None:
    """Check that a workflow's folder holds what it held at export, and that it can be read here.

    Raises:
        ArtifactError: names the files that are missing or changed, or the version that differs.
    """
    folder = Path(file.folder)
    if not folder.is_dir():
        raise ArtifactError(
            f"the saved workflow {folder} is gone; put it back, or export the stack again with the folder where it is "
            "now",
            path=folder,
        )
    missing = [name for name in file.files if not (folder / name).is_file()]
    try:
        changed = [name for name, said in file.files.items() if name not in missing and sha256(folder / name) != said]
    except OSError as error:
        raise ArtifactError(
            f"the saved workflow {folder} cannot be read ({error}); give this user the right to", path=folder
        ) from error
    faults = [
        f"{word}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for word, names in (("missing", missing), ("changed since export", changed))
        if names
    ]
    if faults:
        raise ArtifactError(
            f"the saved workflow {folder} is not the one that was exported ({'; '.join(faults)}); put it back, or "
            "export the stack again",
            path=folder,
        )
    here = installed()
    for name, version in file.versions.items():
        if here[name] != version:
            raise ArtifactError(
                f"the saved workflow {folder} was exported with {name} {version}, and here is {here[name]}; serve it "
                "with the same, or export the stack again here",
                path=folder,
            )


def neutral_row(columns: tuple[Column, ...]) -> dict[str, tuple[int | float | str, ...]]:
    """A row without a null or an empty list, as it travels: zeros, empty texts, lists of one element."""
    row: dict[str, tuple[int | float | str, ...]] = {}
    for column in columns:
        text = column.dtype == "string"
        if column.length is None:
            row[column.name] = ("",) if text else (0,)
        else:
            pad = 0 if column.pad is None else column.pad
            first = next(value for value in (("", "a") if text else (0, 1)) if value != pad)
            row[column.name] = (first, *[pad] * (column.length - 1))
    return row
