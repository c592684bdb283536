"""What the page shows of a running stack: its description, and running totals that the page takes differences of."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tristage.gateway.graph import edges
from tristage.gateway.triton import Served

__all__ = ["describe", "models_now"]

_PHASES = ("queue", "compute_input", "compute_infer", "compute_output")


def describe(served: Served) -> dict[str, Any]:
    """The stack: columns, graph, and what the manifest says of versions and files."""
    outputs = tuple(column.name for column in served.signature.outputs)
    manifest = served.manifest
    return {
        "stack": served.signature.stack,
        "max_batch": served.signature.max_batch,
        "inputs": [asdict(column) for column in served.signature.inputs],
        "outputs": [asdict(column) for column in served.signature.outputs],
        "example": dict(served.example),
        "graph": {
            "steps": [
                {
                    "model": step.model,
                    "step": step.name,
                    "reads": list(step.reads.values()),
                    "writes": list(step.writes.values()),
                }
                for step in served.steps
            ],
            "edges": edges(served.steps, outputs),
        },
        "export": None
        if manifest is None
        else {
            "target": manifest.target,
            "layout": manifest.layout,
            "steps": dict(manifest.models),
            "versions": dict(manifest.versions),
            "files": dict(manifest.files),
            "notes": list(manifest.notes),
        },
        "note": served.note,
    }


def models_now(served: Served, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Running totals of the ensemble's models and of the ensemble itself, versions added up.

    Returns:
        model -> {"version", "calls", "errors", "ns": {phase: nanoseconds}}; and the time they were read at, in seconds.
    """
    wanted = [step.model for step in served.steps] + [served.signature.stack]
    models = {name: {"version": "", "calls": 0, "errors": 0, "ns": dict.fromkeys(_PHASES, 0)} for name in wanted}
    for entry in statistics.get("model_stats", []):
        found: Any = models.get(entry["name"])
        if found is None:
            continue
        inference = entry.get("inference_stats", {})
        found["version"] = entry.get("version", "")
        found["calls"] += int(inference.get("success", {}).get("count", 0))
        found["errors"] += int(inference.get("fail", {}).get("count", 0))
        for phase in _PHASES:
            found["ns"][phase] += int(inference.get(phase, {}).get("ns", 0))
    return {"at": time.monotonic(), "models": models}
