"""What an example of MicroParade costs by the number of past tweets, and what it would cost to keep tweets' vectors.

`python -m benchmarks.microparade` from the repository's root serves, for 4, 6 and 10 past tweets, MicroParade and a
bi-encoder with nothing, past tweets' vectors, and all tweets' vectors kept, one after the other on one core, proves
each on golden rows, load-tests it over gRPC, and writes results/microparade_SIZE.json and .md. No net is trained,
which changes no cost.

The bi-encoder is another model: its BERT reads each tweet alone, where MicroParade's reads two together, whose vectors
cannot be kept. Compare ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from examples.microparade.bi_encoder import BiEncoder, KeptPast, KeptTweets
from examples.microparade.data import Data, prepare, reads
from examples.microparade.net import MicroParade
from examples.microparade.sizes import SIZES, Sizes
from examples.microparade.train import stack
from tristage import __version__
from tristage.client import Client, verify
from tristage.client.codec import ListTruncated
from tristage.export import export
from tristage.loadtest import run_loadtest
from tristage.serving import serve
from tristage.stack import ListInput
from tristage.terminal import progress

RESULTS = Path(__file__).parent / "results"
PAST = (4, 6, 10)
BATCHES = {"small": (1, 64), "full": (1,)}
ROWS = 2_000  # that the workflow is fitted on
TIMEOUT = 600.0  # a request at full size takes seconds


@dataclass(frozen=True)
class Way:
    """A net, what it reads of the golden rows, and the tokens that go through BERT for one row."""

    name: str
    net: nn.Module
    read: Mapping[str, Any]
    columns: Mapping[str, tuple[str, ...]]
    tokens: int


@dataclass(frozen=True)
class Cell:
    """One way at one number of past tweets: batch -> ms/example, and the largest difference from PyTorch."""

    way: str
    past: int
    tokens: int
    ms_per_example: Mapping[int, float]
    furthest: float


def ways(data: Data) -> Iterator[Way]:
    """Every way, untrained."""
    sizes, read = data.sizes, data.read(data.held)
    columns, past, alone = reads(sizes), sizes.past, sizes.tokens + 2
    prefixed = alone + (4 if sizes.prefix else 0)
    torch.manual_seed(sizes.seed)
    yield Way("MicroParade", MicroParade(sizes).eval(), read, columns, past * (alone + prefixed - 1) + alone)
    whole = BiEncoder(sizes).eval()
    yield Way("bi-encoder", whole, read, columns, past * prefixed + alone)
    given = {name: torch.from_numpy(values) for name, values in read.items()}
    with torch.inference_mode():
        candidate = whole.tweets(given["tokens"]).numpy()
        kept = whole.vectors(given["past"], past, given.get("engaged")).numpy()
    others = {name: its for name, its in columns.items() if name in ("there", "seconds", "numbers")}
    rest = {name: read[name] for name in others} | {"past": kept}
    vectors = others | {"past": ("past_vectors",)}
    columns = vectors | {"tokens": columns["tokens"]}
    yield Way("bi-encoder, past kept", KeptPast(whole), rest | {"tokens": read["tokens"]}, columns, alone)
    columns = vectors | {"candidate": ("candidate_vector",)}
    yield Way("bi-encoder, all kept", KeptTweets(whole), rest | {"candidate": candidate}, columns, 0)


def with_vectors(data: Data, way: Way, folder: Path) -> tuple[Data, dict[str, ListInput]]:
    """The data with golden rows that hold the vectors a way reads, and their lengths."""
    table, lengths = pq.read_table(data.golden), {}
    for name, (column, *_) in way.columns.items():
        if column.endswith(("_vector", "_vectors")):
            values = way.read[name]
            lengths[column] = ListInput(values.shape[1])
            table = table.append_column(column, [list(values)])
    golden = folder / "golden_vectors.parquet"
    pq.write_table(table, golden)
    return replace(data, golden=golden), lengths


def measure(data: Data, way: Way, batches: Sequence[int], seconds: float, folder: Path) -> Cell:
    """Export a way, serve it on one core, prove it, and load-test it."""
    data, lengths = with_vectors(data, way, folder)
    made = stack("microparade", data, way.net, way.read, way.columns, lengths)
    repository = folder / way.name.replace(", ", "_").replace(" ", "_")
    export(made, repository, layout="fused", max_batch=max(batches))
    core = min(os.sched_getaffinity(0))
    with serve(repository, cores=[core], http_port=0, grpc_port=0, metrics_port=0) as server:
        with Client(server.grpc_url, timeout=TIMEOUT) as client:
            verified = verify(client, repository)
            verified.check()
            names = [column.name for column in client.signature.inputs]
        rows = pq.read_table(data.golden).select(names)
        report = run_loadtest(
            server.grpc_url, rows=rows, batches=batches, duration=seconds, timeout=TIMEOUT, source="golden rows"
        )
    costs = {cell.batch: cell.ms_per_example for cell in report.cells if cell.ms_per_example is not None}
    return Cell(way.name, data.sizes.past, way.tokens, costs, verified.largest)


def run(sizes: Sizes, past: Sequence[int], batches: Sequence[int], seconds: float) -> list[Cell]:
    """Every way at every number of past tweets."""
    cells = []
    with progress() as bars:
        task = bars.add_task("MicroParade", total=4 * len(past))
        for count in past:
            with tempfile.TemporaryDirectory(prefix="microparade-") as temporary:
                folder = Path(temporary)
                data = prepare(replace(sizes, past=count, rows=ROWS), folder)
                for way in ways(data):
                    bars.update(task, description=f"{way.name}, {count} past tweets")
                    cells.append(measure(data, way, batches, seconds, folder))
                    bars.advance(task)
    return cells


def table(cells: Sequence[Cell]) -> str:
    """The figures as Markdown: a line for each number of past tweets, and what it is beside MicroParade's."""
    names = list(dict.fromkeys(cell.way for cell in cells))
    lines = ["| past tweets | batch | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for past in dict.fromkeys(cell.past for cell in cells):
        its = {cell.way: cell for cell in cells if cell.past == past}
        lines.append(
            f"| {past} | tokens through BERT | " + " | ".join(f"{its[name].tokens:,}" for name in names) + " |"
        )
        for batch in its[names[0]].ms_per_example:
            costs = [its[name].ms_per_example.get(batch, np.nan) for name in names]
            shown = [f"{cost:.3f}" + (f" ({costs[0] / cost:.1f} x)" if cost != costs[0] else "") for cost in costs]
            lines.append(f"| {past} | {batch} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything in one run and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.microparade", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help="small if not said")
    parser.add_argument("--past", type=int, nargs="+", default=PAST, metavar="N", help="4 6 10 if not said")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each batch size is measured")
    parser.add_argument("-o", dest="results", type=Path, default=RESULTS, metavar="FOLDER", help="where results go")
    options = parser.parse_args(arguments)
    cells = run(SIZES[options.size], options.past, BATCHES[options.size], options.seconds)
    document = {
        "created": time.strftime("%Y-%m-%d"),
        "versions": {"tristage": __version__, "torch": torch.__version__},
        "sizes": {name: str(value) for name, value in asdict(SIZES[options.size]).items()},
        "cells": [asdict(cell) for cell in cells],
    }
    text = [
        f"# MicroParade by its past tweets, {options.size}, on one core",
        f"`python -m benchmarks.microparade --size {options.size}`, {document['created']}, tristage {__version__}, "
        f"torch {torch.__version__}. ms/example over gRPC, one request on its way, all steps in one Triton model; in "
        "brackets, how many times cheaper than MicroParade.",
        table(cells),
        "The bi-encoder is another model: its BERT reads each tweet alone, so that vectors of tweets can be kept, of "
        "past tweets or of all; they come with the request. What it predicts is not what MicroParade predicts. No net "
        f"is trained. All answers are within {max(cell.furthest for cell in cells):.1e} of PyTorch's.",
    ]
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / f"microparade_{options.size}"
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))
    return 0


if __name__ == "__main__":
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    sys.modules.setdefault("tensorflow", None)  # type: ignore[arg-type]
    warnings.filterwarnings("ignore", "Tensorflow dtype mappings")
    warnings.simplefilter("ignore", ListTruncated)  # some of the golden rows' tweets are too long, on purpose
    sys.exit(main())
