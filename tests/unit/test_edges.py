"""Golden rows on a split's edge, which an earlier step's rounding sends the other way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import nvtabular
import pandas as pd
import xgboost
from nvtabular import ops

from tristage.export._export import prepare
from tristage.stack import ForestStep, Stack, WorkflowStep


def test_a_trees_split_on_a_workflows_rounding(tmp_path: Path) -> None:
    # the rows that training saw: XGBoost's splits lie on their very values, as NVTabular's logarithm rounds them
    random = np.random.default_rng(0)
    rows = pd.DataFrame({name: random.exponential(800, 4000).astype(np.float32) for name in "xz"})
    workflow = nvtabular.Workflow(["x", "z"] >> ops.LogOp() >> ops.Normalize(out_dtype=np.float32))
    seen = workflow.fit_transform(nvtabular.Dataset(rows)).compute()
    label = ((rows.x > 500) ^ (rows.z > 700)).astype(int)
    model = xgboost.train({"objective": "binary:logistic", "max_depth": 6}, xgboost.DMatrix(seen, label), 60)
    rows.to_parquet(tmp_path / "golden.parquet")
    steps = {"features": WorkflowStep(workflow), "trees": ForestStep(model, reads=["features"])}
    stack = Stack("edge", steps, {"score": "trees.score"}, golden=tmp_path / "golden.parquet")
    prepared = prepare(stack)
    assert prepared.parity is not None
    assert max(prepared.parity.differences.values()) < 1e-6
    left_out = int(prepared.parity.edge.sum())
    assert 0 < left_out <= 20
    assert prepared.golden.num_rows == len(prepared.expected["score"]) == len(rows) - left_out
