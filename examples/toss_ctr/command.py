"""The command line: trains the ensemble, then exports, serves, compares, scores and measures it in several ways."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from examples.compact.run import BATCHES
from examples.toss_ctr.ensemble import Ensemble, Scores
from examples.toss_ctr.run import WAYS, Served, run
from examples.toss_ctr.sizes import FULL, SMALL
from examples.toss_ctr.train import stages_of, train
from tristage.errors import TristageError
from tristage.terminal import console, out, stages

__all__ = ["main", "tables"]

SIZES = {"small": SMALL, "full": FULL}


def tables(ensemble: Ensemble, served: Sequence[Served]) -> list[Table]:
    """How good the ensemble is, and what it costs in each way, for a terminal."""
    good = Table(title="score = 0.5 AP + 0.5 / (1 + WLL)", title_style="bold")
    for heading in ("answers", "AP", "WLL", "score"):
        good.add_column(heading, justify="left" if heading == "answers" else "right", no_wrap=True)
    titles = {"mean": "mean of all models", "climbed": "hill climbing", "calibrated": "and temperature, bias"}
    for name, scores in ensemble.out_of_fold.items():
        good.add_row(f"out of fold: {titles[name]}", *_cells(scores))
    good.add_section()
    good.add_row("held rows, in training", *_cells(served[0].offline))
    good.add_row("held rows, served", *_cells(served[0].scores))
    furthest = max(its.difference for its in served)
    cost = Table(
        title="toss_ctr, ms/example on one CPU core",
        title_style="bold",
        caption=f"no answer is further than {furthest:.1e} from the training libraries'",
    )
    cost.add_column("served")
    for heading in ("workflows + models", "look-ups", *(f"batch {batch}" for batch in BATCHES), "of it preprocessing"):
        cost.add_column(heading, justify="right", min_width=11 if heading.startswith("of it") else 7)
    for its in served:
        figures = [_shown(its.ms_per_example.get(batch)) for batch in BATCHES]
        parts = " ".join(_shown(its.preprocessing.get(batch)) for batch in BATCHES).strip()
        counts = (f"{its.workflows} + {its.models}", str(its.look_ups))
        cost.add_row(f"{its.way}, {its.layout}", *counts, *figures, parts)
    return [good, cost]


def _cells(scores: Scores) -> list[str]:
    return [f"{value:.6f}" for value in (scores.ap, scores.wll, scores.score)]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _document(ensemble: Ensemble, served: Sequence[Served]) -> dict[str, Any]:
    return {
        "folds": len(ensemble.folds),
        "models": len(ensemble.members),
        "weights": dict(ensemble.weights),
        "temperature": ensemble.temperature,
        "bias": ensemble.bias,
        "climbs": ensemble.tried,
        "out_of_fold": {name: asdict(scores) for name, scores in ensemble.out_of_fold.items()},
        "served": [asdict(its) for its in served],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.toss_ctr", description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help="small if not said")
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="how long each batch size is measured; 0: not at all, nor served in ways that are only there for that",
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    options = parser.parse_args(arguments)
    sizes = SIZES[options.size]
    ways = tuple(way for way in WAYS if options.seconds or not way.for_cost)
    try:
        with tempfile.TemporaryDirectory(prefix="toss_ctr-") as temporary:
            folder = Path(temporary)
            with stages("train", stages_of(sizes)) as on_stage:
                ensemble = train(sizes, folder, on_stage)
            with stages("serve", 3 * len(ways)) as on_stage:
                served = run(ensemble, folder, ways, options.seconds, on_stage)
    except TristageError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return error.exit_code
    if options.json:
        sys.stdout.write(json.dumps(_document(ensemble, served), indent=1) + "\n")
        return 0
    for table in tables(ensemble, served):
        out.print(table)
    weighed = [weight for weight in ensemble.weights.values() if weight]
    out.print(
        f"{len(ensemble.members)} models of {len(ensemble.folds)} folds, of which {len(weighed)} weigh something and "
        f"are served; temperature {ensemble.temperature:.3f}, bias {ensemble.bias:+.3f}"
    )
    return 0
