"""Another export under load: no request fails, and each is answered by all of the old steps or by all of the new."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from gateway_stack import run_gateway

from tristage.client import Client, connect
from tristage.errors import RepositoryError, ServerError
from tristage.export import export
from tristage.manifest import checksums, read_manifest, write_manifest
from tristage.serving import serve
from tristage.stack import ForestStep, Stack

FREE: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
COLUMNS = ("a", "b", "c")
ROWS = pd.DataFrame({name: np.random.default_rng(7).normal(size=256).astype(np.float32) for name in COLUMNS})


def forest(rows: Any, target: Any, seed: int) -> xgb.Booster:
    settings = {"max_depth": 6, "seed": seed, "subsample": 0.6, "base_score": 0.5, "nthread": 1}
    return xgb.train(settings, xgb.DMatrix(np.asarray(rows, np.float32), np.asarray(target)), 60)


@dataclass(frozen=True)
class Version:
    """Two forests, of which the second reads the first."""

    trees: xgb.Booster
    last: xgb.Booster

    def answers(self) -> np.ndarray[Any, Any]:
        """What XGBoost answers for ROWS."""
        first = self.trees.inplace_predict(ROWS.to_numpy())
        found: np.ndarray[Any, Any] = self.last.inplace_predict(np.column_stack([first, ROWS["c"]]))
        return found

    def export(self, path: Path, layout: str = "ensemble", columns: tuple[str, ...] = COLUMNS) -> None:
        golden = path.with_suffix(".parquet")
        ROWS.set_axis(columns, axis=1).to_parquet(golden)
        steps = {
            "trees": ForestStep(self.trees, reads=columns),
            "last": ForestStep(self.last, reads=("trees", columns[2])),
        }
        stack = Stack(name="live", targets=("y",), steps=steps, outputs={"score": "last.y"}, golden=golden)
        export(stack, path, layout=layout, overwrite=True)


def version(seed: int) -> Version:
    sign = -1.0 if seed % 2 else 1.0
    trees = forest(ROWS, sign * (2 * ROWS["a"] + ROWS["b"]), seed)
    first = trees.inplace_predict(ROWS.to_numpy())
    return Version(
        trees, forest(np.column_stack([first, ROWS["c"]]), sign * (first + ROWS["a"] * ROWS["c"] + seed), seed)
    )


ONE, TWO = version(1), version(2)
MIXED = [Version(ONE.trees, TWO.last), Version(TWO.trees, ONE.last)]


@dataclass(frozen=True)
class Answered:
    """One request: which caller's, when it was sent, its rows and what came back (None: it failed, for this reason)."""

    caller: str
    sent: float
    rows: slice
    scores: np.ndarray[Any, Any] | None
    reason: str = ""


@contextmanager
def ready_gateway(grpc: str, repository: Path) -> Iterator[str]:
    """A gateway that has found Triton; its URL."""
    with run_gateway("--url", grpc, "--repository", repository) as url:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{url}/readyz", timeout=10):
                    break
            except urllib.error.HTTPError:  # not yet, on a machine that has much to do
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield url


class Load:
    """Callers that ask one request after the other until told to stop."""

    def __init__(self, grpc: str, http: str, gateway: str) -> None:
        self.answered: list[Answered] = []
        self._done = threading.Event()
        self._urls = {"grpc": grpc, "http": http}
        self._gateway = gateway
        callers: list[tuple[str, Callable[[], Callable[[pd.DataFrame], Any]]]] = [
            ("grpc", lambda: self._client("grpc")),
            ("grpc again", lambda: self._client("grpc")),
            ("http", lambda: self._client("http")),
            ("new clients", lambda: self._new_client),
            ("gateway", lambda: self._predict),
            ("gateway again", lambda: self._predict),
            ("steps", lambda: self._steps),
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(name, number, make)) for number, (name, make) in enumerate(callers)
        ]
        self.callers = {name for name, _ in callers}

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request hangs"

    def _run(self, caller: str, seed: int, make: Callable[[], Callable[[pd.DataFrame], Any]]) -> None:
        draw = np.random.default_rng(seed)
        ask = make()
        while not self._done.is_set():
            count = 1 if caller == "steps" else int(draw.integers(1, 65))
            start = int(draw.integers(0, len(ROWS) - count))
            rows, sent = slice(start, start + count), time.monotonic()
            try:
                scores = np.asarray(ask(ROWS.iloc[rows]), np.float32)
                self.answered.append(Answered(caller, sent, rows, scores))
            except Exception as error:
                self.answered.append(Answered(caller, sent, rows, None, repr(error)))
            time.sleep(0.002)

    def _client(self, protocol: str) -> Callable[[pd.DataFrame], Any]:
        client = Client(self._urls[protocol])
        return lambda rows: client.predict(rows)["score"].to_numpy()

    def _new_client(self, rows: pd.DataFrame) -> Any:
        with Client(self._urls["http"]) as client:
            return client.predict(rows)["score"].to_numpy()

    def _predict(self, rows: pd.DataFrame) -> Any:
        predictions = self._post("predict", {"rows": rows.to_dict("records")})["predictions"]
        return [prediction["score"] for prediction in predictions]

    def _steps(self, rows: pd.DataFrame) -> Any:
        return [self._post("steps", {"row": rows.to_dict("records")[0]})["prediction"]["score"]]

    def _post(self, path: str, body: Any) -> Any:
        import urllib.error
        import urllib.request

        request = urllib.request.Request(
            f"{self._gateway}/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{error.code}: {error.read().decode()}") from error


class Serving:
    """`tristage serve` as a user starts it."""

    def __init__(self, repository: Path) -> None:
        command = [str(Path(sys.executable).with_name("tristage")), "serve", str(repository)]
        command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}
        )
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self._lines.extend(iter(self.process.stderr.readline, ""))

    @property
    def text(self) -> str:
        """All it has written."""
        return "".join(self._lines)

    def await_text(self, pattern: str, seconds: float = 120) -> str:
        """What a pattern's group matches, once it does."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, self.text
            assert self.process.poll() is None, self.text
            time.sleep(0.05)
        return match[match.lastindex or 0]


@contextmanager
def serving(repository: Path) -> Iterator[Serving]:
    running = Serving(repository)
    try:
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0, running.text
    finally:
        running.process.kill()
        running.process.wait()


def whole(answered: Answered, expected: np.ndarray[Any, Any]) -> bool:
    return answered.scores is not None and bool(
        np.allclose(answered.scores, expected[answered.rows], rtol=1e-5, atol=1e-5)
    )


def test_the_versions_and_their_mixtures_can_be_told_apart() -> None:
    every = [version.answers() for version in (ONE, TWO, *MIXED)]
    for number, these in enumerate(every):
        for those in every[number + 1 :]:
            assert np.isclose(these, those, rtol=1e-4, atol=1e-4).mean() < 0.05


@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_a_new_export_takes_over_under_load(tmp_path: Path, layout: str) -> None:
    repository = tmp_path / "repository"
    ONE.export(repository, layout)
    old, new = ONE.answers(), TWO.answers()
    with serving(repository) as running:
        http, grpc = running.await_text(r"HTTP +(\S+)"), running.await_text(r"gRPC +(\S+)")
        with ready_gateway(grpc, repository) as gateway, Load(grpc, http, gateway) as load:
            time.sleep(2)
            TWO.export(repository, layout)
            running.await_text("serving the new export of live")
            switched = time.monotonic()
            time.sleep(2)
    failed = [answered for answered in load.answered if answered.scores is None]
    assert not failed, failed[:3]
    neither = [answered for answered in load.answered if not whole(answered, old) and not whole(answered, new)]
    assert not neither, neither[:3]
    late = [answered for answered in load.answered if answered.sent > switched and not whole(answered, new)]
    assert not late, late[:3]
    for answers in (old, new):
        assert {answered.caller for answered in load.answered if whole(answered, answers)} == load.callers
    assert "Traceback" not in running.text


def test_one_export_after_the_other(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    ONE.export(repository)
    with serve(repository, **FREE) as server, Client(server.grpc_url) as client:
        transport = connect(server.http_url)
        assert not server.reload()
        ONE.export(repository)
        assert not server.reload(), "it is the same, to the byte"
        for number, now in enumerate([MIXED[0], TWO, ONE], 2):
            now.export(repository)
            assert server.reload()
            np.testing.assert_allclose(client.predict(ROWS)["score"], now.answers(), rtol=1e-5, atol=1e-5)
            deadline = time.monotonic() + 30
            while set(models := transport.models(10.0)) != {"live", f"live_trees.{number}", f"live_last.{number}"}:
                assert time.monotonic() < deadline, models
                time.sleep(0.1)
        transport.close()


def test_what_cannot_take_over_is_refused_and_the_old_goes_on(tmp_path: Path) -> None:
    repository, good = tmp_path / "repository", tmp_path / "good"
    ONE.export(repository)
    TWO.export(good)
    with serve(repository, **FREE) as server, Client(server.grpc_url) as client:

        def still_one() -> None:
            np.testing.assert_allclose(client.predict(ROWS)["score"], ONE.answers(), rtol=1e-5, atol=1e-5)

        TWO.export(repository, columns=("a", "b", "other"))
        with pytest.raises(RepositoryError, match=r"columns changed \(c, other\).*start it on the new export"):
            server.reload()
        still_one()
        shutil.copytree(good, repository, dirs_exist_ok=True)
        (repository / "live_last" / "1" / "program.json").write_text("{}")
        with pytest.raises(RepositoryError, match=r"changed since export: live_last/1/program\.json"):
            server.reload()
        still_one()
        manifest = read_manifest(repository)
        damaged = {**vars(manifest), "files": checksums(repository)}
        write_manifest(repository, type(manifest)(**damaged))
        with pytest.raises(ServerError, match=r"does not load \(.*live_last.*\); the server goes on with what it has"):
            server.reload()
        still_one()
        shutil.rmtree(repository)
        with pytest.raises(RepositoryError, match=r"holds no manifest\.json"):
            server.reload()
        still_one()
        shutil.copytree(good, repository)
        assert server.reload()
        np.testing.assert_allclose(client.predict(ROWS)["score"], TWO.answers(), rtol=1e-5, atol=1e-5)


def test_serve_says_once_why_an_export_is_not_served(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    ONE.export(repository)
    with serving(repository) as running:
        grpc = running.await_text(r"gRPC +(\S+)")
        running.await_text("Ctrl-C ends it")
        TWO.export(repository, columns=("a", "b", "other"))
        running.await_text(r"note: not served: the columns changed \(c, other\)")
        time.sleep(6)
        assert running.text.count("not served") == 1
        with Client(grpc) as client:
            np.testing.assert_allclose(client.predict(ROWS)["score"], ONE.answers(), rtol=1e-5, atol=1e-5)
        TWO.export(repository)
        running.await_text("serving the new export of live")
        with Client(grpc) as client:
            np.testing.assert_allclose(client.predict(ROWS)["score"], TWO.answers(), rtol=1e-5, atol=1e-5)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    repository = tmp_path / "repository"
    ONE.export(repository)
    with serve(repository, **FREE) as server:
        assert [path.name for path in (tmp_path / "tmp").glob("tristage-models-*")]
        TWO.export(repository)
        assert server.reload()
    assert not list((tmp_path / "tmp").glob("tristage-models-*"))
