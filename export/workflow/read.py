"""NVTabular workflows, as a stack gives them: fitted and in memory, or the folder that Workflow.save wrote."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from tristage.errors import ArtifactError
from tristage.serving.nvtabular import load

__all__ = ["find_workflow", "folder_of", "open_workflow"]


def find_workflow(step: str, artifact: Any, trust: bool) -> None:
    """Look whether a workflow is there, and may be read.

    Raises:
        ArtifactError: the folder holds no workflow, or is not trusted.
    """
    if isinstance(artifact, (str, Path)) and not (Path(artifact) / "workflow.pkl").is_file():
        raise ArtifactError(
            f"step {step}: {artifact} is no folder that Workflow.save wrote (it has no workflow.pkl)",
            path=Path(artifact),
        )
    if isinstance(artifact, (str, Path)) and not trust:
        raise ArtifactError(
            f"step {step}: reading {artifact} runs whatever its pickle says (NVTabular saves workflows so); if you "
            "trust who wrote it, say so with --trust, or trust=True in Python",
            path=Path(artifact),
        )


def open_workflow(step: str, artifact: Any) -> Any:
    """The fitted workflow.

    Raises:
        ArtifactError: it is none, cannot be loaded, or is not fitted.
    """
    workflow = _load(step, Path(artifact)) if isinstance(artifact, (str, Path)) else artifact
    if not hasattr(workflow, "output_node"):
        raise ArtifactError(f"step {step}: a {type(workflow).__name__} is no nvtabular.Workflow")
    if getattr(workflow, "input_schema", None) is None or workflow.output_schema is None:
        raise ArtifactError(f"step {step}: the workflow is not fitted; call fit, or fit_transform, first")
    return workflow


def _load(step: str, folder: Path) -> Any:
    nvtabular = importlib.metadata.version("nvtabular")
    try:
        return load(folder)
    except ModuleNotFoundError as error:
        raise ArtifactError(
            f"step {step}: {folder} needs the module {error.name}, which is not found; install it or, where it holds "
            f"operators of your own, put the folder that {str(error.name).partition('.')[0]} lies in on PYTHONPATH, as "
            "in PYTHONPATH=. tristage export",
            path=folder,
        ) from error
    except Exception as error:  # unpickling raises whatever the operators raise
        raise ArtifactError(
            f"step {step}: NVTabular {nvtabular} cannot load {folder} ({error})", path=folder
        ) from error


def folder_of(artifact: Any, reason: str) -> Path:
    """Where a workflow that NVTabular itself has to serve, for a reason, is read from.

    Raises:
        ArtifactError: it is in memory only.
    """
    if isinstance(artifact, (str, Path)):
        return Path(artifact)
    raise ArtifactError(
        f"{reason}, so that NVTabular itself has to serve the workflow, from a folder: save it with "
        "workflow.save(folder), and give the stack the folder; or write a lowering, which serves it in a fraction of "
        "the time (tristage.export.workflow.lowers)"
    )
