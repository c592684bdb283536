"""Exports the trained ensemble, serves it on one core, compares, scores and measures what it answers; in four ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.compact.run import TOLERANCE, cost, measure, on_one_core, prove
from examples.compact.system import Trained
from examples.toss_ctr.ensemble import Ensemble, Scores, scores_of
from examples.toss_ctr.stack import PREPROCESSING, declare
from tristage.client import Client
from tristage.errors import ParityError
from tristage.export import Prepared, prepare, write
from tristage.export.size.repository import sizes_of
from tristage.loadtest import Report
from tristage.serving import Server

__all__ = ["WAYS", "Served", "Way", "run"]


@dataclass(frozen=True)
class Way:
    """One way to serve the ensemble.

    Attributes:
        title: what it is.
        every: whether all models are served, and weigh the same.
        repeated: whether every model has its preprocessing for itself.
        layout: of the export.
        for_cost: whether it is only there to be measured beside the others.
    """

    title: str
    every: bool = False
    repeated: bool = False
    layout: str = "fused"
    for_cost: bool = False


@dataclass(frozen=True)
class Served:
    """What serving it in one way showed.

    Attributes:
        way, layout: which way.
        workflows, models: steps of each kind that are served; Triton models are as many, and one more for the mean, in
            the layout `ensemble`, and one in all in the layout `fused`.
        look_ups: keyed look-ups that the workflows make for a row.
        golden, awkward: rows that were compared.
        difference: the largest from the training libraries, over HTTP and gRPC.
        scores, offline: of the served answers for held rows, and of the training libraries'.
        ms_per_example: batch -> milliseconds, over gRPC, one request on its way; empty where it was not measured.
        preprocessing: batch -> milliseconds an example in workflow steps, by Triton's statistics; empty in `fused`.
    """

    way: str
    layout: str
    workflows: int
    models: int
    look_ups: int
    golden: int
    awkward: int
    difference: float
    scores: Scores
    offline: Scores
    ms_per_example: Mapping[int, float]
    preprocessing: Mapping[int, float]


WAYS = (
    Way("climbed"),
    Way("climbed", layout="ensemble", for_cost=True),
    Way("climbed, a workflow each", repeated=True, for_cost=True),
    Way("climbed, a workflow each", repeated=True, layout="ensemble", for_cost=True),
    Way("all models", every=True, layout="ensemble"),
)


def run(
    ensemble: Ensemble,
    folder: Path,
    ways: tuple[Way, ...] = WAYS,
    seconds: float = 2.0,
    on_stage: Callable[[str], None] = lambda _: None,
) -> list[Served]:
    """Serve the ensemble in some ways.

    Args:
        ensemble: what was trained.
        folder: takes the repositories.
        ways: those; what two of them share is converted once where they follow each other.
        seconds: how long each batch size is measured; 0 for not at all.
        on_stage: called with a few words before each of three stages a way.

    Raises:
        ParityError: an answer differs from the training libraries' by more than TOLERANCE, or the score does.
    """
    served: list[Served] = []
    prepared: tuple[tuple[bool, bool], Prepared] | None = None
    for number, way in enumerate(ways):
        stack = declare(ensemble, every=way.every, repeated=way.repeated)
        on_stage(f"{way.title}, {way.layout}: exporting")
        if prepared is None or prepared[0] != (way.every, way.repeated):
            prepared = ((way.every, way.repeated), prepare(stack))
        repository = folder / f"repository{number}"
        exported = write(prepared[1], repository, layout=way.layout)
        on_stage(f"{way.title}, {way.layout}: comparing")
        trained = Trained(stack, ensemble.awkward, lambda rows, every=way.every: ensemble.answer(rows, every))
        with on_one_core(repository) as server:
            golden, difference = prove(server, repository, trained)
            scores, offline = _scores(ensemble, server, way.every)
            on_stage(f"{way.title}, {way.layout}: {'measuring' if seconds else 'done'}")
            report = measure(server.grpc_url, trained, seconds) if seconds else None
        workflows = sum(name.startswith(PREPROCESSING) for name in stack.steps)
        served.append(
            Served(
                way=way.title,
                layout=way.layout,
                workflows=workflows,
                models=len(stack.steps) - workflows - 1,
                look_ups=sizes_of(repository, exported.manifest).served.keyed_look_ups,
                golden=golden,
                awkward=len(ensemble.awkward),
                difference=difference,
                scores=scores,
                offline=offline,
                ms_per_example={} if report is None else cost(report),
                preprocessing={} if report is None or way.layout == "fused" else _preprocessing(report),
            )
        )
    return served


def _scores(ensemble: Ensemble, server: Server, every: bool) -> tuple[Scores, Scores]:
    """What the served answers for held rows score, and what the training libraries' do."""
    with Client(server.grpc_url) as client:
        answered = np.asarray(client.predict(ensemble.held, unknown="ignore")["click"])
    scores = scores_of(ensemble.clicked, answered)
    offline = scores_of(ensemble.clicked, ensemble.answer(ensemble.held, every)["click"])
    if abs(scores.score - offline.score) > TOLERANCE:
        raise ParityError(f"served, the ensemble scores {scores.score:.6f}, and {offline.score:.6f} in training")
    return scores, offline


def _preprocessing(report: Report) -> dict[int, float]:
    """Milliseconds an example in the workflow steps of each batch size."""
    return {
        cell.batch: sum(step.compute_ms for step in cell.steps if f"_{PREPROCESSING}_" in step.model) / cell.batch
        for cell in report.cells
    }
