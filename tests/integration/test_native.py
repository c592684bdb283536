"""Repositories for Triton's native backends, loaded by the real tritonserver, and answered where it has those backends.

The pip wheel's Triton has no FIL and no ONNX Runtime backend: there every model's configuration is read, and the only
thing missing may be the backend's library. TRISTAGE_NATIVE_BACKENDS names a folder that holds them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xgboost
from sklearn.ensemble import IsolationForest, RandomForestClassifier, RandomForestRegressor

from tests import native_nets
from tristage.client import Client, verify
from tristage.errors import ServerError
from tristage.export import export
from tristage.export.stack_file import read_stack
from tristage.manifest import checksums, read_manifest, write_manifest
from tristage.serving import serve
from tristage.stack import ForestStep, ListInput, NetStep, Stack
from tristage.weights import WEIGHT_FORMATS

BACKENDS = os.environ.get("TRISTAGE_NATIVE_BACKENDS")
NET_BACKENDS = ("pytorch", "tensorflow")
WITH_BACKENDS = pytest.mark.skipif(
    not BACKENDS, reason="TRISTAGE_NATIVE_BACKENDS names no folder with Triton's fil and onnxruntime backends"
)
FEATURES, CLEAN = ["a", "b", "c", "kind"], ["c", "d", "e"]
PLACES = [(target, layout) for target in ("ngc-cpu", "ngc-gpu") for layout in ("ensemble", "fused")]


def make_rows(count: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    rows = pd.DataFrame(random.normal(size=(count, 5)).astype(np.float32), columns=list("abcde"))
    rows["kind"] = random.integers(0, 40, count).astype(np.float32)
    rows["country"] = random.choice(["de", "fr"], count)
    rows.loc[random.random(count) < 0.1, "a"] = np.nan
    return rows


def booster(x: pd.DataFrame, label: np.ndarray, seed: int = 0, **options: object) -> xgboost.Booster:
    options = {"max_depth": 5, "seed": seed, "subsample": 0.7, "nthread": 1, **options}
    return xgboost.train(options, xgboost.DMatrix(x, label), 12)


def every_forest(folder: Path) -> Stack:
    """A stack of what FIL answers wrong, or dies of, where it is given the library's own model or settings."""
    rows, golden = make_rows(900, 1), make_rows(300, 2)
    odd = [np.nan, np.inf, -np.inf, 0, -0.0, 1e-40, 3e38, -3e38]
    golden.loc[: len(odd) - 1, "b"] = np.array(odd, np.float32)
    golden.loc[10:14, "kind"] = np.array([np.nan, 99, -1, -0.5, 7.5], np.float32)
    golden.loc[20:22, "country"] = "nowhere"
    golden.to_parquet(folder / "golden.parquet", index=False)
    random = np.random.default_rng(3)
    x, clean = rows[FEATURES], rows[CLEAN]
    click = (np.nan_to_num(x["a"]) + (x["kind"] % 3 == 1) + random.normal(size=900) / 2 > 0.7).to_numpy().astype(int)
    value, three = (x["b"] * 3 + x["c"]).to_numpy(), random.integers(0, 3, 900)
    two, binary = np.stack([value, -value], 1), {"objective": "binary:logistic"}
    bag = {target: [booster(x, click, seed, **binary) for seed in range(3)] for target in ("click", "like")}
    groups = {
        country: {target: booster(x, click, seed, **binary) for target in ("click", "like")}
        for seed, country in enumerate(("de", "fr"))
    }
    category = lightgbm.Dataset(x, click, categorical_feature=["kind"])
    light = lightgbm.train({"objective": "binary", "verbose": -1, "min_data_per_group": 5}, category, 9)
    options = {"iterations": 9, "one_hot_max_size": 50, "logging_level": "Silent", "allow_writing_files": False}
    names = {"feature_names": ["c", "d", "e"], "cat_features": ["e"]}
    pool = catboost.Pool(clean.assign(e=(clean["e"].abs() * 3).astype(int)).to_numpy(object), click, **names)
    early = np.stack([random.random(900) for _ in range(4)], 1).astype(np.float32)
    forests = {
        "one": ForestStep(booster(x, click, **binary), FEATURES),
        "number": ForestStep(booster(x, value), FEATURES),
        "bag": ForestStep(bag, FEATURES),
        "group": ForestStep(groups, FEATURES, group="country"),
        "margins": ForestStep(bag["click"], FEATURES, average="margins", margins=True),
        "classes": ForestStep(booster(x, three, objective="multi:softprob", num_class=3), FEATURES),
        "both": ForestStep(booster(x, two), FEATURES),
        "vector": ForestStep(booster(x, two, multi_strategy="multi_output_tree", subsample=1), FEATURES),
        "counts": ForestStep(booster(x, three, objective="count:poisson"), FEATURES),
        "light": ForestStep(light, FEATURES),
        "cat": ForestStep(catboost.CatBoostClassifier(**options).fit(pool), CLEAN),
        "random": ForestStep(RandomForestClassifier(9, random_state=0).fit(clean, three), CLEAN),
        "targets": ForestStep(RandomForestRegressor(9, random_state=0).fit(clean, two), CLEAN),
        "lonely": ForestStep(IsolationForest(n_estimators=9, random_state=0).fit(clean), CLEAN),
        "top": ForestStep(booster(early, click), ["one", "bag", "number"]),
    }
    columns = {
        **dict.fromkeys(("one", "number", "counts", "light", "cat", "lonely", "top"), ("score",)),
        **dict.fromkeys(("bag", "group", "both", "vector", "targets"), ("click", "like")),
        **dict.fromkeys(("classes", "random"), ("score0", "score1", "score2")),
        "margins": ("score", "score_margin"),
    }
    outputs = {f"{step}_{column}": f"{step}.{column}" for step in forests for column in columns[step]}
    return Stack("forests", forests, outputs, ("click", "like"), golden=folder / "golden.parquet")


@pytest.fixture(scope="module")
def forests(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return every_forest(tmp_path_factory.mktemp("forests"))


@pytest.fixture(scope="module")
def stacks(
    forests: Stack, tiny_stack: Path, net_models: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Callable[[], Stack]]:
    return {
        "forests": lambda: forests,
        "tiny": lambda: read_stack(tiny_stack / "stack.yaml"),
        "nets": cache(lambda: net_models.make_stack(net_models.train(), tmp_path_factory.mktemp("nets"))),
    }


@pytest.fixture(
    scope="module",
    params=[
        *((stack, *place) for stack in ("forests", "tiny") for place in PLACES),
        *(pytest.param(("nets", *place), marks=pytest.mark.slow) for place in PLACES[:1]),
    ],
    ids="-".join,
)
def repository(
    request: pytest.FixtureRequest, stacks: dict[str, Callable[[], Stack]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    stack, target, layout = request.param
    path = tmp_path_factory.mktemp("native") / "repository"
    exported = export(stacks[stack](), path, target=target, layout=layout, trust=True)
    assert exported.parity is not None
    assert max(exported.parity.differences.values()) < 5e-6
    return path


def test_the_server_reads_every_configuration(repository: Path) -> None:
    forests = read_manifest(repository).stack != "nets"
    assert refused(repository) == ({"fil", "onnxruntime"} if forests else {"onnxruntime"})


def refused(repository: Path) -> set[str]:
    """The backends whose libraries are all that the server lacks for a repository's models."""
    with pytest.raises(ServerError, match="name the folder of its backends with --backends") as caught:
        serve(repository, http_port=0, grpc_port=0, metrics_port=0).stop()
    models = {path.parent.name for path in repository.glob("*/config.pbtxt")} - {read_manifest(repository).stack}
    reasons = dict(re.findall(r"model (\w+) does not load: (.*)", str(caught.value)))
    assert set(reasons) == models
    said = [
        re.match("Invalid argument: unable to find backend library for backend '(.*?)'", r) for r in reasons.values()
    ]
    return {found[1] for found in said if found is not None} if all(said) else set()


def test_no_python(repository: Path) -> None:
    assert not list(repository.rglob("*.py"))
    assert 'backend: "python"' not in "".join(path.read_text() for path in repository.rglob("config.pbtxt"))


@WITH_BACKENDS
def test_answers(repository: Path, tmp_path: Path) -> None:
    """On this machine the CPU answers for the GPU's configuration, but for the kind of its instances."""
    on_this_machine(repository, tmp_path / "repository", 5e-6)


def on_this_machine(repository: Path, here: Path, tolerance: float) -> None:
    """Serve a copy of a repository with the real backends, and verify it."""
    shutil.copytree(repository, here)
    for path in here.rglob("config.pbtxt"):
        path.write_text(path.read_text().replace("KIND_GPU", "KIND_CPU"))
    write_manifest(here, replace(read_manifest(here), files=checksums(here)))
    golden = pq.read_table(here / "golden.parquet")
    with serve(here, cores=[0], http_port=0, grpc_port=0, metrics_port=0, backends=BACKENDS) as server:
        for url in (server.http_url, server.grpc_url):
            with Client(url) as client:
                verified = verify(client, here, tolerance=1e-5)
                assert max(verified.differences.values()) < tolerance
                for rows in (1, 3):  # alone, and few
                    answers = client.predict(golden.slice(0, rows), unknown="ignore")
                    for name in answers.column_names:
                        expected = golden.slice(0, rows)[f"expected.{name}"].to_numpy()
                        np.testing.assert_allclose(answers[name].to_numpy(), expected, atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module", params=NET_BACKENDS)
def nets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Stack]:
    return request.param, native_nets.stack(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize(("target", "layout"), [("ngc-cpu", "fused"), ("ngc-gpu", "ensemble")])
def test_nets_of_frameworks_own_backends(nets: tuple[str, Stack], target: str, layout: str, tmp_path: Path) -> None:
    """The server reads their configurations, too, and where it has the backend it answers."""
    backend, stack = nets
    export(stack, tmp_path / "made", target=target, layout=layout, instances=2)
    if BACKENDS and (Path(BACKENDS) / backend).is_dir():
        on_this_machine(tmp_path / "made", tmp_path / "repository", 2e-6)
    else:
        assert refused(tmp_path / "made") == {"fil", "onnxruntime", backend}


@WITH_BACKENDS
@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
def test_narrow_weights(weights: str, tmp_path: Path) -> None:
    """ONNX Runtime of 24.10 looks narrow tables up, and answers within what the export measured."""
    nets = {
        "torch": NetStep(native_nets.module(), native_nets.READS, examples=native_nets.make_rows(2), weights=weights),
        "keras": NetStep(native_nets.keras_net("one"), native_nets.READS, weights=weights),
    }
    outputs = {f"{step}{at}": f"{step}.score{at}" for step in nets for at in range(2)}
    golden = native_nets.write_golden(tmp_path)
    stack = Stack("narrow", nets, outputs, inputs={"items": ListInput(7)}, golden=golden)
    made = export(stack, tmp_path / "repository", target="ngc-cpu").manifest.weights
    assert made is not None
    with (
        serve(
            tmp_path / "repository", cores=[0], http_port=0, grpc_port=0, metrics_port=0, backends=BACKENDS
        ) as server,
        Client(server.grpc_url) as client,
    ):
        found = verify(client, tmp_path / "repository")
    found.check()
    assert found.narrow == made.outputs
    for output, difference in found.differences.items():
        assert difference == pytest.approx(made.outputs[output], abs=1e-6)
