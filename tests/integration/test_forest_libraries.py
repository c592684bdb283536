"""Forests of every library in one stack: exported by the command line from files, served by a real Triton, verified."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import joblib
import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

from tristage.client import Client
from tristage.serving import serve

STACK = """\
name: forests
targets: [click]
golden: golden.parquet
steps:
  xgb: {forest: "xgb-{bag}.ubj", reads: [a, b, c, kind], average: margins, margins: true}
  lgb: {forest: lgb.txt, reads: [kind, a, b, c]}
  cat: {forest: cat.cbm, reads: [a, b, c, kind]}
  sk: {forest: "sk-{group}.joblib", reads: [a, b, c, kind], group: country}
  top: {forest: top.joblib, reads: [xgb.click, xgb.click_margin, lgb, cat, sk]}
  score: {mean: [top, xgb.click]}
outputs: {click: score.click, margin: xgb.click_margin}
"""


def make_rows(count: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    rows = pd.DataFrame(random.normal(size=(count, 3)).astype(np.float32), columns=list("abc"))
    rows["kind"] = random.integers(0, 25, count)
    rows["country"] = random.choice(["de", "fr"], count)
    rows["click"] = (rows["a"] + (rows["kind"] % 3 == 1) + random.normal(size=count) / 2 > 0.7).astype(np.float32)
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forests")
    rows, golden = make_rows(600, 1), make_rows(200, 2).drop(columns="click")
    features, click = rows[["a", "b", "c", "kind"]], rows["click"].to_numpy()
    for bag in range(2):
        model = xgboost.XGBClassifier(n_estimators=6, random_state=bag, subsample=0.5, n_jobs=1)
        model.fit(features, click)
        model.save_model(folder / f"xgb-{bag}.ubj")
    data = lightgbm.Dataset(features[["kind", "a", "b", "c"]], click, categorical_feature=["kind"])
    lightgbm.train({"objective": "binary", "verbose": -1}, data, 6).save_model(folder / "lgb.txt")
    options = {"iterations": 6, "cat_features": ["kind"], "one_hot_max_size": 50, "logging_level": "Silent"}
    model = catboost.CatBoostClassifier(**options, allow_writing_files=False).fit(features, click)
    model.save_model(str(folder / "cat.cbm"))
    for country in ("de", "fr"):
        here = (rows["country"] == country).to_numpy()
        model = RandomForestClassifier(6, random_state=0).fit(features[here], click[here])
        joblib.dump(model, folder / f"sk-{country}.joblib")
    stage2 = np.random.default_rng(3).random((600, 5))
    joblib.dump(GradientBoostingClassifier(n_estimators=6).fit(stage2, click), folder / "top.joblib")
    golden.loc[::9, "kind"] = 999
    golden.to_parquet(folder / "golden.parquet", index=False)
    (folder / "stack.yaml").write_text(STACK, encoding="utf-8")
    return folder


def test_pickles_are_not_read_unasked(folder: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    done = cli("export", folder / "stack.yaml", "-o", tmp_path / "repository")
    assert done.code == 2
    assert "sk-de.joblib" in done.err
    assert "--trust" in done.err
    assert not (tmp_path / "repository").exists()


def test_served_answers_equal_the_training_libraries(folder: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    path = tmp_path / "repository"
    done = cli("export", "--trust", folder / "stack.yaml", "-o", path, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["golden_rows"] == 200
    versions = json.loads((path / "manifest.json").read_text())["versions"]
    assert {"lightgbm", "catboost", "scikit-learn"} <= set(versions)
    with serve(path, cores=[0], http_port=0, grpc_port=0, metrics_port=0) as server:
        done = cli("verify", path, "--url", server.grpc_url, "--json")
        assert done.code == 0, done.err
        assert max(json.loads(done.out)["differences"].values()) <= 1e-5
        rows = make_rows(5, 4)
        rows.loc[0, ["a", "b"]] = [np.inf, 3e38]
        with Client(server.grpc_url) as client:
            answers = client.predict(rows.drop(columns="click"))
    models = [xgboost.XGBClassifier() for _ in range(2)]
    for bag, model in enumerate(models):
        model.load_model(folder / f"xgb-{bag}.ubj")
    features = rows[["a", "b", "c", "kind"]].to_numpy(np.float32)
    margins = np.mean(
        [m.get_booster().inplace_predict(features, predict_type="margin", validate_features=False) for m in models], 0
    )
    np.testing.assert_allclose(answers["margin"], margins, atol=1e-6, rtol=1e-6)


def test_exporting_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    digests = []
    for seed in ("1", "2"):
        path = tmp_path / seed
        command = [Path(sys.executable).with_name("tristage"), "export", "--trust", folder / "stack.yaml", "-o", path]
        subprocess.run(
            command, check=True, capture_output=True, timeout=180, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        digests.append(
            {
                file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
                for file in path.rglob("*")
                if file.is_file() and file.suffix != ".pyc"
            }
        )
    assert digests[0] == digests[1]
