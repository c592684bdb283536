"""A table of features exchanged under load: no request fails, and each is answered from one table alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tristage.client import Client
from tristage.export import export
from tristage.export.feature_tables import go_back, replace_table
from tristage.export.lower import lower
from tristage.serving import serve
from tristage.stack import CandidatesStep, FeaturesStep, ListInput, MeanStep, Stack

COUNT = 20_000
ASKED = np.arange(-5, COUNT + 5, 97)


def table(seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame({"user": np.arange(COUNT), "a": draw.normal(size=COUNT), "b": draw.normal(size=COUNT)})


def joined(features: pd.DataFrame) -> np.ndarray[Any, Any]:
    """What pandas joins."""
    found: np.ndarray[Any, Any] = pd.DataFrame({"user": ASKED}).merge(features, how="left")[["a", "b"]].to_numpy()
    return found


def exported(folder: Path, layout: str) -> Path:
    pd.DataFrame({"user": ASKED[:50]}).to_parquet(folder / "golden.parquet")
    steps = {"users": FeaturesStep(table(0), "user"), "same": MeanStep(("users",))}
    outputs = {"a": "same.a", "b": "same.b"}
    export(Stack("looked", steps, outputs, golden=folder / "golden.parquet"), folder / "models", layout=layout)
    return folder / "models"


class Asking:
    """Callers that ask on and on, and what was answered them: which table's features, or why not."""

    def __init__(self, url: str, tables: list[pd.DataFrame]) -> None:
        self.by_caller: list[list[str]] = [[] for _ in range(3)]
        self._url, self._expected = url, [joined(each) for each in tables]
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(found,)) for found in self.by_caller]

    @property
    def found(self) -> list[str]:
        """Everything that any of them was answered, one caller after another."""
        return [answer for found in self.by_caller for answer in found]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _run(self, found: list[str]) -> None:
        with Client(self._url) as client:
            while not self._done.is_set():
                try:
                    made = client.predict(pd.DataFrame({"user": ASKED}))[["a", "b"]].to_numpy(np.float64)
                except Exception as error:  # every failure is one too many, whatever it is
                    found.append(repr(error))
                    return
                near = [np.allclose(made, each, rtol=1e-6, equal_nan=True) for each in self._expected]
                found.append(str(near.index(True)) if any(near) else "of several tables")
                self._done.wait(0.01)

    def wait_for(self, what: str) -> None:
        deadline, already = time.monotonic() + 60, [len(found) for found in self.by_caller]
        while not any(what in found[at:] for found, at in zip(self.by_caller, already, strict=True)):
            assert time.monotonic() < deadline, [found[-5:] for found in self.by_caller]
            time.sleep(0.02)


@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_no_request_fails_and_none_mixes_tables(layout: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
    repository = exported(tmp_path, layout)
    tables = [table(seed) for seed in range(3)]
    with serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        with Asking(server.grpc_url, tables) as asking:
            asking.wait_for("0")
            for number in (1, 2):
                replace_table(repository, "users", tables[number], partial(lower))
                asking.wait_for(str(number))
            go_back(repository, "users")
            asking.wait_for("1")
        assert set(asking.found) == {"0", "1", "2"}
        for found in asking.by_caller:  # a caller never meets a table that was left behind
            served = iter("0121")
            assert all(answer in served for answer, _ in groupby(found)), found
        missed = cli("verify", repository, "--url", server.grpc_url)
        assert missed.code == 1
        assert "the table of users is another than that of the export" in " ".join(missed.err.split())
        assert not server.reload()  # the export is still the same
    with serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server:  # and so after a restart
        with Asking(server.http_url, tables) as asking:
            asking.wait_for("1")
        assert set(asking.found) == {"1"}


def test_a_table_that_candidates_are_looked_up_in(tmp_path: Path) -> None:
    """One user, many items, whose features are exchanged while they are served."""
    tables = [table(seed).rename(columns={"user": "item"}) for seed in range(2)]
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"items": list(draw.integers(-5, COUNT + 5, (30, 4)))})
    rows.to_parquet(tmp_path / "golden.parquet")
    inner = Stack(
        "scoring",
        {"facts": FeaturesStep(tables[0], "item"), "same": MeanStep(("facts",))},
        {"a": "same.a", "b": "same.b"},
    )
    stack = Stack(
        "outer",
        {"each": CandidatesStep(inner, {"item": "items"})},
        {"a": "each.a*"},
        inputs={"items": ListInput(4)},
        golden=tmp_path / "golden.parquet",
    )
    repository = export(stack, tmp_path / "models", layout="fused").path
    items = np.stack(rows["items"].to_list())
    with serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server, Client(server.grpc_url) as client:

        def near(features: pd.DataFrame) -> bool:
            made = np.stack(list(client.predict(rows)["a"]))
            wanted = features.set_index("item")["a"].reindex(items.ravel()).to_numpy().reshape(items.shape)
            return np.allclose(made, wanted, rtol=1e-6, equal_nan=True)

        assert near(tables[0])
        replace_table(repository, "facts", tables[1], partial(lower))
        deadline = time.monotonic() + 60
        while not near(tables[1]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        go_back(repository, "facts")
        while not near(tables[0]):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_command_says_what_is_there_and_what_is_wrong(tmp_path: Path, cli: Callable[..., Any]) -> None:
    repository = exported(tmp_path, "fused")
    shown = cli("features", repository)
    assert shown.code == 0
    assert "20,000" in shown.out
    assert "a float64" in " ".join(shown.out.split())
    table(1).to_parquet(tmp_path / "new.parquet")
    done = cli("features", repository, "users", tmp_path / "new.parquet", "--json")
    assert done.code == 0, done.err
    (said,) = json.loads(done.out)
    assert (said["step"], said["rows"], len(said["before"])) == ("users", COUNT, 1)
    assert cli("features", repository, "users", "--back").code == 0
    table(1).rename(columns={"a": "c"}).to_parquet(tmp_path / "other.parquet")
    for arguments, error in (
        (("users", tmp_path / "other.parquet"), "other features than the one that is served"),
        (("items", tmp_path / "other.parquet"), "no table of features of a step items; it has users"),
        (("users", tmp_path / "none.parquet"), "there is no file"),
        (("users",), "give users a new table"),
        (("--back",), "name the step"),
    ):
        done = cli("features", repository, *arguments)
        assert done.code == 2, done
        assert error in " ".join(done.err.split()), done.err
