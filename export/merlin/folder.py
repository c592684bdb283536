"""The folder that Merlin Systems' `Ensemble.export` wrote: a pickled graph, and a Triton model for each of its models.

Merlin Systems 23.8 writes `executor_model/1/ensemble/ensemble.pkl`, whose operators name the models beside it:
`0_transformworkflowtriton/1/workflow`, `1_filtriton/1/xgboost.json`, `2_predicttensorflowtriton/1/model.savedmodel`,
`3_predictpytorchtriton/1/model.pt`. Nothing of it needs Merlin Systems: its classes are read as plain records.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from tristage.errors import ArtifactError

__all__ = ["open_ensemble", "version_folder"]


def open_ensemble(folder: Path, trust: bool) -> tuple[Any, str]:
    """Unpickle the graph of an exported ensemble.

    Args:
        folder: what was given to Ensemble.export, as `path`.
        trust: whether it may be read at all, which runs what its pickle says.

    Returns:
        The ensemble, whose operators of Merlin Systems are records of their attributes, and its Triton model's name.

    Raises:
        ArtifactError: it is no such folder, is not trusted, or cannot be unpickled.
    """
    found = sorted(folder.glob("*/*/ensemble/ensemble.pkl"))
    if len(found) != 1:
        what = "has no" if not found else f"has {len(found)} of"
        raise ArtifactError(
            f"{folder} is not a folder that Merlin Systems' Ensemble.export wrote: it {what} "
            "<model>/<version>/ensemble/ensemble.pkl",
            path=folder,
        )
    (path,) = found
    if not trust:
        raise ArtifactError(
            f"reading {folder} runs whatever its pickles say (Merlin Systems exports so); if you trust who wrote it, "
            "say so with --trust, or trust=True in Python",
            path=folder,
        )
    try:
        with path.open("rb") as file:
            return _Records(file).load(), path.parents[2].name
    except Exception as error:  # unpickling raises whatever the operators raise
        raise ArtifactError(f"{path} cannot be unpickled ({type(error).__name__}: {error})", path=path) from error


def version_folder(repository: Path, model: str) -> Path:
    """The folder of a Triton model's latest version.

    Raises:
        ArtifactError: it has none.
    """
    versions = [path for path in (repository / model).glob("*") if path.is_dir() and path.name.isdecimal()]
    if not versions:
        raise ArtifactError(f"{repository} has no version of model {model}, which its graph names", path=repository)
    return max(versions, key=lambda path: int(path.name))


class _Records(pickle.Unpickler):
    """Merlin Systems need not be installed: its pins clash with newer Treelites, and its classes say all by name."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[:2] == ["merlin", "systems"]:
            return type(name, (), {"__module__": module})
        return super().find_class(module, name)
