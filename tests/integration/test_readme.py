"""What the README and the docs tell a newcomer to write works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tristage.export.stack_file import read_stack
from tristage.stack import ForestStep, NetStep, WorkflowStep

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _block(language: str, words: str, text: str = README) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    (found,) = [block for block in blocks if words in block]
    return str(found)


def test_the_stack_file_is_a_stack(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text(_block("yaml", "name: ctr"), encoding="utf-8")
    stack = read_stack(tmp_path / "stack.yaml")
    assert [type(step) for step in stack.steps.values()] == [WorkflowStep, ForestStep, NetStep, ForestStep]
    assert stack.golden == tmp_path / "held_out_rows.parquet"


@pytest.mark.slow
def test_the_python_example_runs(tiny_stack: Path, tmp_path: Path) -> None:
    before = f"""
import sys
from pathlib import Path
import nvtabular, xgboost
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tiny_stack import make_rows
rows = make_rows(200, 5, True)
rows["click"] = rows.pop("like")
user = ["user"] >> nvtabular.ops.Categorify()
encoded = ["language"] >> nvtabular.ops.TargetEncoding(["click"], kfold=5, p_smooth=20)
workflow = nvtabular.Workflow(user + encoded + ["verified"]).fit(nvtabular.Dataset(rows))
features = workflow.transform(rows)
truth = xgboost.DMatrix(features, rows["click"])
booster = xgboost.train({{"objective": "binary:logistic"}}, truth, 5)
rows[["user", "language", "verified"]].to_parquet("held_out_rows.parquet", index=False)
rows = rows[["user", "language", "verified"]]
"""
    after = (
        "\nassert len(answers) == 200 and list(answers.columns) == ['click'] and answers['click'].between(0, 1).all()\n"
    )
    example = _block("python", 'name="ctr"').replace(
        "cores=[0])", "cores=[0], http_port=0, grpc_port=0, metrics_port=0)"
    )
    (tmp_path / "example.py").write_text(f"{before}\n{example}\n{after}", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_custom_operator_is_compiled(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "custom_operators.md").read_text(encoding="utf-8")
    (tmp_path / "token_counts.py").write_text(_block("python", "# token_counts.py", text), encoding="utf-8")
    (tmp_path / "example.py").write_text(_block("python", 'name="counted"', text), encoding="utf-8")
    script = "import sys; sys.path.insert(0, ''); import runpy; runpy.run_path('example.py')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
