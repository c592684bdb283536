"""Retrieval and candidates in a stack.yaml, exported by the command line, served by Triton in both layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost

from tristage.client import Client
from tristage.client.golden import verify
from tristage.serving import serve

faiss = pytest.importorskip("faiss")

WIDTH, ITEMS, NEAR, BEST = 4, 50, 6, 3
STACK = f"""\
name: stages
golden: golden.parquet
inputs: {{vector: {{max_length: {WIDTH}, pad: 0.0}}}}
steps:
  near: {{index: items.faiss, reads: vector, k: {NEAR}}}
  scored: {{stack: scoring/stack.yaml, each: {{item: near.item*, score: near.score*}}, shared: {{age: age}}}}
  best: {{top: scored.click*, k: {BEST}, carry: {{item: near.item*, near: near.score*}}}}
outputs: {{items: near.item*, clicks: scored.click*, best: best.item*, near: best.near*}}
"""
SCORING = """\
name: scoring
steps:
  trees: {forest: trees.ubj, reads: [score, age, item]}
outputs: {click: trees.score}
"""


def write(folder: Path) -> tuple[Any, xgboost.Booster]:
    draw = np.random.default_rng(8)
    inner = faiss.IndexFlatL2(WIDTH)
    index = faiss.IndexIDMap(inner)
    index.add_with_ids(draw.normal(size=(ITEMS, WIDTH)).astype(np.float32), np.arange(ITEMS, dtype=np.int64) * 3 + 100)
    faiss.write_index(index, str(folder / "items.faiss"))
    rows = draw.normal(size=(300, 3)) * [2, 30, 80]
    data = xgboost.DMatrix(rows, draw.integers(0, 2, 300))
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1}, data, 8)
    (folder / "scoring").mkdir()
    booster.save_model(folder / "scoring" / "trees.ubj")
    (folder / "stack.yaml").write_text(STACK)
    (folder / "scoring" / "stack.yaml").write_text(SCORING)
    vectors = draw.normal(size=(60, WIDTH)).astype(np.float32)
    ages = np.where(draw.random(60) < 0.2, np.nan, draw.uniform(10, 80, 60))
    pd.DataFrame({"vector": list(vectors), "age": ages}).to_parquet(folder / "golden.parquet")
    return faiss.read_index(str(folder / "items.faiss")), booster


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_served(tmp_path: Path, cli: Callable[..., Any], layout: str) -> None:
    index, booster = write(tmp_path)
    repository = tmp_path / "repository"
    exported = cli("export", tmp_path / "stack.yaml", "-o", repository, "--layout", layout)
    assert exported.code == 0, exported.err
    inspected = cli("inspect", repository)
    assert inspected.code == 0, inspected.err
    assert "scored" in inspected.out
    vectors = np.random.default_rng(9).normal(size=(25, WIDTH)).astype(np.float32)
    vectors[:3] = [[np.nan] * WIDTH, [np.inf, 0, 0, 0], [0] * WIDTH]
    rows = pd.DataFrame({"vector": list(vectors), "age": [np.nan, 1e30, *range(23)]})
    with serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        for url in (server.http_url, server.grpc_url):
            with Client(url) as client:
                verified = verify(client, repository)
                verified.check()
                assert verified.rows == 60
                together = client.predict(rows)
                alone = pd.concat([client.predict(rows.iloc[[row]]) for row in range(len(rows))])
            found = [index.search(vectors[row : row + 1], NEAR) for row in range(len(rows))]
            items = np.concatenate([items for _, items in found])
            scores = np.concatenate([scores for scores, _ in found])
            age = np.repeat(rows["age"].to_numpy(), NEAR)
            features = np.stack([scores.ravel(), age, items.ravel()], 1).astype(np.float32)
            clicks = booster.inplace_predict(features).reshape(-1, NEAR)
            for answers in (together, alone):
                np.testing.assert_array_equal(np.stack(list(answers["items"])), items)
                made = np.stack(list(answers["clicks"]))
                np.testing.assert_allclose(made, clicks, atol=1e-6)
                order = np.argsort(-made, axis=1, kind="stable")[:, :BEST]
                np.testing.assert_array_equal(np.stack(list(answers["best"])), np.take_along_axis(items, order, 1))
                near = np.take_along_axis(scores, order, 1)
                np.testing.assert_allclose(np.stack(list(answers["near"])), near, rtol=1e-6)
