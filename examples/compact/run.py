"""Trains a system, exports it, serves it on one core, compares what it answers, and measures what an example costs."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from examples.compact.system import System, Trained
from tristage.client import Client
from tristage.client.codec import ListTruncated
from tristage.client.golden import largest_difference, verify
from tristage.errors import ParityError
from tristage.export import export
from tristage.loadtest import Report, run_loadtest
from tristage.serving import Server, serve

__all__ = ["BATCHES", "TOLERANCE", "Result", "compare", "cost", "measure", "on_one_core", "prove", "run"]

BATCHES = (1, 64)
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Result:
    """What running a system showed.

    Attributes:
        name: the system's.
        golden: golden rows that were replayed.
        awkward: awkward rows that were asked.
        difference: the largest from the training libraries, of golden and awkward rows, over HTTP and gRPC.
        ms_per_example: batch -> milliseconds, over gRPC, one request on its way; empty where it was not measured.
        scores: see `Trained`.
    """

    name: str
    golden: int
    awkward: int
    difference: float
    ms_per_example: Mapping[int, float]
    scores: Mapping[str, float]


def run(
    system: System,
    size: str = "small",
    seconds: float = 2.0,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Result:
    """Run one system in a folder of its own, which is gone afterwards.

    Args:
        system: which.
        size: a key of its sizes.
        seconds: how long each batch size is measured; 0 for not at all.
        on_stage: called with a word before each stage.

    Raises:
        ParityError: an answer differs from the training library's by more than TOLERANCE.
    """
    with tempfile.TemporaryDirectory(prefix=f"{system.name}-") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", ListTruncated)  # some lists are too long on purpose
        folder = Path(temporary)
        on_stage("training")
        trained = system.train(system.sizes[size], folder)
        on_stage("exporting")
        repository = folder / "repository"
        export(trained.stack, repository, layout="fused", max_batch=trained.max_batch)
        on_stage("serving")
        with on_one_core(repository) as server:
            on_stage("comparing")
            golden, difference = prove(server, repository, trained)
            measured = {}
            if seconds:
                on_stage("measuring")
                measured = cost(measure(server.grpc_url, trained, seconds))
        return Result(system.name, golden, len(trained.awkward), difference, measured, trained.scores)


def on_one_core(repository: Path) -> Server:
    """A repository, served on the first core that there is, at ports that are free."""
    return serve(repository, cores=[min(os.sched_getaffinity(0))], http_port=0, grpc_port=0, metrics_port=0)


def prove(server: Server, repository: Path, trained: Trained) -> tuple[int, float]:
    """Compare what is served with the training libraries, over HTTP and gRPC.

    Returns:
        How many golden rows were replayed, and the largest difference of those and of the awkward rows.

    Raises:
        ParityError: an answer differs by more than TOLERANCE.
    """
    golden, differences, expected = 0, [], trained.answer(trained.awkward)
    for url in (server.http_url, server.grpc_url):
        with Client(url) as client:
            with _no_word_of_lists():
                verified = verify(client, repository)
            verified.check()
            golden = verified.rows
            differences += [verified.largest, compare(client, trained.awkward, expected)]
    if max(differences) > TOLERANCE:
        raise ParityError(f"{trained.stack.name} answers awkward rows otherwise, by {max(differences):.3g}")
    return golden, max(differences)


def compare(client: Client, rows: pd.DataFrame, expected: Mapping[str, NDArray[Any]]) -> float:
    """The largest difference of what is served for rows, together and each alone, from what is expected.

    Whole numbers are infinitely far from any other; NaN equals NaN.
    """
    with _no_word_of_lists():
        together = client.predict(rows, unknown="ignore")
        alone = pd.concat([client.predict(rows.iloc[[row]], unknown="ignore") for row in range(len(rows))])
    return max(
        _difference(wanted, np.stack(list(answers[name].to_numpy())))
        for answers in (together, alone)
        for name, wanted in expected.items()
    )


def _difference(wanted: NDArray[Any], answered: NDArray[Any]) -> float:
    if wanted.dtype.kind in "iub":
        same = wanted.dtype == answered.dtype and np.array_equal(wanted, answered)
        return 0.0 if same else float("inf")
    return largest_difference(wanted, answered)


@contextmanager
def _no_word_of_lists() -> Iterator[None]:
    """Some lists are too long on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ListTruncated)
        yield


def measure(url: str, trained: Trained, seconds: float) -> Report:
    """Measure the golden rows in BATCHES, over gRPC, one request on its way."""
    rows = pq.read_table(trained.stack.golden)
    with Client(url) as client:
        names = [column.name for column in client.signature.inputs]
    batches = [batch for batch in BATCHES if batch <= trained.max_batch]
    with _no_word_of_lists():
        return run_loadtest(url, rows=rows.select(names), batches=batches, duration=seconds, source="held-out rows")


def cost(report: Report) -> dict[int, float]:
    """Batch -> milliseconds an example."""
    return {cell.batch: cell.ms_per_example for cell in report.cells if cell.ms_per_example is not None}
