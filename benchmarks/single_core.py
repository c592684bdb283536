"""The single-core comparison: the reference stack as trained, behind FastAPI, by Merlin Systems, and by tristage.

`python -m benchmarks.single_core --size small|paper` from the repository's root, after
`python -m examples.recsys2021.train --size ...` (and `make merlin`, without which Merlin Systems is left out), exports
the stack in both layouts, once, into .cache/single_core, starts every way on one core, checks that all of them answer
what the training libraries answered, measures them in turns from another core, and writes
results/single_core_<size>.json and .md. A way that fails is reported with its reason; the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.baselines.exported import exported
from benchmarks.baselines.fastapi_client import FastApi
from benchmarks.baselines.figures import BATCHES, WAYS, Figures, Turn, bars
from benchmarks.baselines.merlin import Preprocessing, merlin, workflows
from benchmarks.baselines.process import ROOT, WayFailed, Worker
from benchmarks.baselines.profile import profile
from benchmarks.baselines.report import Run, document, markdown
from benchmarks.baselines.rows import golden, test_rows
from benchmarks.baselines.served import Served
from benchmarks.merlin_server import MERLIN
from tristage.errors import TristageError
from tristage.loadtest._machine import machine
from tristage.manifest import read_manifest

RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    *("tristage", "nvtabular", "pandas", "xgboost-cpu", "torch", "keras", "tensorflow-cpu", "numpy", "onnxruntime"),
    *("fastapi", "uvicorn", "pydantic", "nvidia-pytriton", "tritonclient"),
)
NOTES = {
    "libraries": "one Python process, NVTabular on pandas, XGBoost inplace_predict with nthread 1, PyTorch under "
    "inference_mode, Keras; a DataFrame in, an array out",
    "fastapi": "the same process behind FastAPI and uvicorn with httptools, one worker, pydantic rows in and out as "
    "JSON; bodies are made and answers left unread outside the clock",
    "floor": "the fused model's program, evaluated as the runner does, on tensors that are encoded already",
    "fused": "tritonserver 2.51, gRPC, tristage's load tester, one request on its way",
    "ensemble": "the same, a Triton model per step",
    "merlin": "merlin-systems 23.8, all workflows on the same tritonserver, by its executor model; requests carry the "
    "target columns as zeros, as its TargetEncoding fails without",
    "features": "the models of the workflows' steps of the layout ensemble, called by themselves, one after the other",
}


def say(words: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


class Comparison:
    """The ways that are running, and what they showed."""

    def __init__(self, core: int, artifacts: Path, repositories: dict[str, Path], scratch: Path) -> None:
        self._core, self._artifacts, self._repositories, self._scratch = core, artifacts, repositories, scratch
        self.figures = Figures()
        self.running: dict[str, Any] = {}
        self._ways: dict[int, dict[str, str]] = {}  # batch -> step -> the way that its library is asked
        self._open = ExitStack()

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def start(self) -> None:
        """Start every way, one after the other, and check its answers."""
        fused, ensemble = self._repositories["fused"], self._repositories["ensemble"]
        artifacts, core = self._artifacts, self._core
        ways: dict[str, Callable[[], Any]] = {
            "floor": lambda: Worker(core, "floor", artifacts, fused, ensemble),
            "fused": lambda: Served(core, artifacts, fused),
            "ensemble": lambda: Served(core, artifacts, ensemble),
            "features": lambda: self._features(ensemble),
            "libraries": lambda: Worker(core, "libraries", artifacts, fused),
            "fastapi": lambda: FastApi(core, artifacts, fused),
            "merlin": lambda: merlin(core, artifacts, ensemble, self._scratch / "merlin"),
        }
        for way, make in ways.items():
            with self._failing(way):
                say(f"starting: {WAYS[way]}")
                started = time.monotonic()
                self.running[way] = self._open.enter_context(make())
                checked = self._check(way)
                say(f"  ready after {time.monotonic() - started:.0f} s; {checked}")
                self.figures.notes[way] = f"{NOTES[way]}; {checked}"

    @contextmanager
    def _features(self, ensemble: Path) -> Iterator[Preprocessing]:
        if "ensemble" not in self.running:
            raise WayFailed("the layout ensemble is not served")
        address = self.running["ensemble"].server.grpc_url.removeprefix("grpc://")
        models = read_manifest(ensemble).models
        steps = [models[step] for step in workflows(self._artifacts)]
        opened = Preprocessing(address, steps, ensemble, self._artifacts, flat=False)
        try:
            yield opened
        finally:
            opened.close()

    @contextmanager
    def _failing(self, way: str) -> Iterator[None]:
        """A way that fails is out, and the reason is kept."""
        try:
            yield
        except Exception as error:  # whatever it is, the others go on
            said = str(error) if isinstance(error, (WayFailed, TristageError)) else repr(error)
            self.figures.failed[way] = said
            self.running.pop(way, None)
            say(f"  failed: {self.figures.failed[way]}")

    def _check(self, way: str) -> str:
        running = self.running[way]
        if way == "features":
            return "checked as part of the ensemble"
        if way == "merlin":
            return self._check_merlin(running)
        found = running.ask("check") if isinstance(running, Worker) else running.check()
        rows = pq.read_metadata(self._repositories["fused"] / "golden.parquet").num_rows
        off = f", but {found['off']:.2%} of them, which lie on a split's edge" if found["off"] else ""
        return f"within {found['largest']:.1e} of the training libraries on {rows:,} golden rows{off}"

    def _check_merlin(self, running: Preprocessing) -> str:
        if "libraries" not in self.running:
            return "its answers could not be checked without the training libraries"
        path = self._scratch / "features.npz"
        self.running["libraries"].ask("features", path=str(path))
        rows, _ = golden(self._repositories["ensemble"], [])
        texts = [rows[field.name].is_null() for field in rows.schema if pa.types.is_string(field.type)]
        whole = ~np.any([np.asarray(null) for null in texts], axis=0)
        answers = running.answers(rows)
        with np.load(path) as made:
            both = [name for name in made if name in answers]
            same = [
                name
                for name in both
                if np.allclose(answers[name][whole], made[name][whole], rtol=1e-5, atol=1e-5, equal_nan=True)
            ]
        if 2 * len(same) < len(both):
            raise WayFailed(f"Merlin Systems answers {len(both) - len(same)} columns otherwise than NVTabular")
        others = [name for name in both if name not in same]
        but = f"; {len(others)} others differ ({', '.join(others[:3])}, ...)" if others else ""
        rows = f"{whole.sum():,} golden rows without null texts"
        return f"within 1e-5 of NVTabular in {len(same)} scalar columns of {rows}{but}"

    def measure(self, turns: int, seconds: float) -> None:
        """Every way at every batch size, in turns; who begins changes with the turn."""
        for turn in range(turns):
            for batch in BATCHES:
                order = list(self.running)
                for way in order[turn % len(order) :] + order[: turn % len(order)]:
                    if self.figures.is_slow(way, batch, seconds):
                        continue  # more turns of a call that takes a minute would say nothing new
                    with self._failing(way):
                        self._measure(way, batch, seconds, turn)

    def _measure(self, way: str, batch: int, seconds: float, turn: int) -> None:
        running = self.running[way]
        if way == "libraries":
            self._tune(batch)
        if way == "fastapi":
            running.ask_by(self._ways.get(batch, {}))
        given: dict[str, Any] = {"batch": batch, "seconds": seconds, "turn": turn}
        made = Turn(**running.ask("measure", **given)) if isinstance(running, Worker) else running.measure(**given)
        self.figures.add(way, batch, made)
        figures = f"p50 {made.p50_ms:.3f} ms, {made.ms_per_example:.4f} ms/example"
        say(f"turn {turn + 1}, batch {batch}, {WAYS[way]}: {figures}")

    def _tune(self, batch: int) -> None:
        """Have baseline 1 find out how its libraries are best asked; the service asks them alike."""
        chosen = self.running["libraries"].ask("tune", batch=batch)
        if batch not in self._ways:
            words = ", ".join(f"{step} by {way}" for step, way in chosen.items())
            self.figures.notes["libraries"] += f"; fastest at batch {batch}: {words}"
        self._ways[batch] = chosen

    def explain(self, seconds: float) -> None:
        """Where the time goes, by step."""
        titles = {
            "floor": "The floor, each step's graph by itself, in process",
            "libraries": "Baseline 1, each step by its library",
            "ensemble": "tristage, a model per step: Triton's statistics",
            "fused": "tristage, fused: Triton's statistics",
        }
        for way, title in titles.items():
            if way not in self.running:
                continue
            with self._failing(way):
                running = self.running[way]
                if isinstance(running, Worker):
                    found = {}
                    for batch in BATCHES:
                        if way == "libraries":
                            self._tune(batch)
                        found[batch] = running.ask("where", batch=batch, seconds=seconds, turn=0)
                else:
                    steps = running.steps.items()
                    found = {batch: {name: median(ms) for name, ms in known.items()} for batch, known in steps}
                self.figures.steps[title] = found

    def profiles(self, size: str, seconds: float) -> dict[str, list[str]]:
        """What the fused server does at the batch sizes whose bars were missed."""
        found: dict[str, list[str]] = {}
        for batch in sorted({bar.batch for bar in bars(size, self.figures) if bar.met is False}):
            if "fused" in self.running:
                with self._failing("fused"):
                    say(f"a bar was missed: profiling batch {batch}")
                    found[f"the fused server at batch {batch}"] = profile(self.running["fused"], batch, seconds)
        return found


def versions() -> dict[str, str]:
    """Of everything that takes part."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    for info in MERLIN.glob("lib/python*/site-packages/merlin_systems-*.dist-info"):
        found["merlin-systems"] = info.name.split("-")[1].removesuffix(".dist")
    return {**found, "tritonserver": "2.51.0"}


def described() -> dict[str, str]:
    """The machine, with what matters to tables that no cache holds."""
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    known = machine() | {"memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB"}
    known["cores"] = str(os.cpu_count())
    return known | ({"last-level cache": cache.read_text().strip()} if cache.is_file() else {})


def main() -> None:
    """Measure everything in one run and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", required=True, help="of the stack: small or paper")
    parser.add_argument("--artifacts", type=Path, help="the trained stack (default: where the example leaves it)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each way at each batch size in each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder that the results go to")
    options = parser.parse_args()
    artifacts = options.artifacts or ROOT / "examples" / "recsys2021" / "artifacts" / options.size
    if not (artifacts / "stack.yaml").is_file():
        parser.error(f"{artifacts} holds no stack; run: python -m examples.recsys2021.train --size {options.size}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    cores = sorted(os.sched_getaffinity(0))
    core, client = cores[0], cores[-1]
    say(f"exporting {artifacts}, unless that is done")
    try:
        repositories = exported(artifacts, ROOT / ".cache" / "single_core" / options.size)
    except subprocess.CalledProcessError:
        sys.exit("the stack could not be exported; nothing was measured")
    computer = described()
    os.sched_setaffinity(0, {client})  # and everything from here on but what is pinned to the other core
    with (
        tempfile.TemporaryDirectory() as scratch,
        Comparison(core, artifacts, repositories, Path(scratch)) as comparison,
    ):
        comparison.start()
        comparison.measure(options.turns, options.seconds)
        say("where the time goes")
        comparison.explain(options.seconds)
        profiles = comparison.profiles(options.size, options.seconds)
        figures = comparison.figures
    run = Run(
        size=options.size,
        command=shlex.join(["python", "-m", "benchmarks.single_core", *sys.argv[1:]]),
        date=datetime.now(timezone.utc).isoformat(timespec="minutes"),
        machine=computer,
        versions=versions(),
        rows=len(test_rows(artifacts)),
        seconds=options.seconds,
        turns=options.turns,
        cores=(core, client),
        profiles=profiles,
    )
    name = f"single_core_{options.size}"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{name}.json").write_text(json.dumps(document(run, figures), indent=1) + "\n", encoding="utf-8")
    text = markdown(run, figures)
    (options.output / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
