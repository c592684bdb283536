"""Trains a stack whose workflow cannot be compiled: an operator of its own, and a LambdaOp that cannot be traced.

`python tests/fallback_stack.py FOLDER` writes the artifacts, a stack.yaml and golden rows with nulls and empty lists.
As a script, so that cloudpickle saves the operator by value, as it saves one that a notebook defines.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

for framework in ("tensorflow", "torch"):  # NVTabular takes ten seconds to import those it finds
    sys.modules.setdefault(framework, None)  # type: ignore[arg-type]

from nvtabular.ops import Operator  # noqa: E402

STACK = """\
name: own
golden: golden.parquet
inputs:
  tags: {max_length: 4}
  tokens: {max_length: 5, pad: -1}
steps:
  features: {workflow: workflow}
  plain: {workflow: plain}
  trees: {forest: trees.ubj, reads: [features, plain]}
  net: {net: net.onnx, reads: {tags: features.tags, tokens: features.tokens, n: [features.name_letters, n]}}
  score: {mean: [trees, net]}
outputs: {like: score.score, prefix: features.user_prefix}
"""


class Letters(Operator):
    """How many letters a text has; there is no lowering for it. A text with an exclamation mark is an error."""

    def transform(self, col_selector: Any, df: pd.DataFrame) -> pd.DataFrame:
        made = pd.DataFrame(index=df.index)
        for name in col_selector.names:
            if df[name].str.contains("!").any():
                raise ValueError("an exclamation mark")
            made[f"{name}_letters"] = df[name].str.len().fillna(-1).astype(np.int64)
        return made

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        return {f"{name}_letters": [name] for name in col_selector.names}

    @property
    def output_dtype(self) -> Any:
        return np.int64


def make_rows(count: int, seed: int) -> pd.DataFrame:
    """Raw rows; of an even seed, with texts, tags and tokens that no odd one has."""
    random = np.random.default_rng(seed)
    users = random.choice(["ann", "anton", "bob", "zoë", "", None, "new" if seed % 2 == 0 else "bo"], count)
    users[0] = "ann"  # NVTabular tells a column's type from its first row
    age = np.where(random.random(count) < 0.2, np.nan, random.integers(10, 90, count))
    sizes = [3, *random.integers(0, 7, count - 1)]
    return pd.DataFrame(
        {
            "user": users,
            "name": ["a", *random.choice(["a", "bcd", "日本", "", None], count - 1)],
            "age": age,
            "n": random.integers(-5, 1000, count),
            "verified": random.random(count) < 0.3,
            "tags": [random.choice(["x", "y", f"z{seed}"], size).tolist() for size in sizes],
            "tokens": [random.integers(0, 30, size).tolist() for size in sizes],
            "like": ((users == "ann") | (random.random(count) < 0.3)).astype(np.int8),
        }
    )


def fit(rows: pd.DataFrame) -> Any:
    """The workflow that cannot be compiled; the label goes through it, as it does in most."""
    import nvtabular as nvt
    from nvtabular import ops

    prefix = (
        ["user"]
        >> ops.LambdaOp(lambda column: column.str.slice(0, 2))
        >> ops.Categorify()
        >> ops.Rename(postfix="_prefix")
    )
    letters = ["name"] >> Letters()
    encoded = ["user"] >> ops.TargetEncoding(["like"], kfold=3, p_smooth=5)
    scaled = ["age"] >> ops.FillMissing(add_binary_cols=True)
    tags = ["tags"] >> ops.Categorify()
    made = nvt.Workflow(prefix + letters + encoded + scaled + tags + ["tokens", "verified", "like"])
    return made.fit(nvt.Dataset(rows))


def train(folder: Path) -> None:
    """Train everything and write it to `folder`."""
    import nvtabular as nvt
    import onnx
    import xgboost
    from nvtabular import ops
    from onnx import TensorProto, helper, numpy_helper

    rows, golden = make_rows(900, 1), make_rows(250, 2)
    workflow = fit(rows)
    workflow.save(str(folder / "workflow"))
    plain = nvt.Workflow(["n", "age"] >> ops.FillMissing() >> ops.Rename(postfix="_plain")).fit(nvt.Dataset(rows))
    plain.save(str(folder / "plain"))
    for node in workflow.graph.get_nodes_by_op_type([workflow.output_node], ops.TargetEncoding):
        node.op.kfold = 1
    made = pd.concat([workflow.transform(rows), plain.transform(rows)], axis=1)
    names = ["user_prefix", "name_letters", "TE_user_like", "age", "age_filled", "verified", "n_plain", "age_plain"]
    matrix = xgboost.DMatrix(made[names].astype(np.float32), rows["like"], feature_names=names)
    options = {"objective": "binary:logistic", "max_depth": 4, "nthread": 1}
    xgboost.train(options, matrix, 12).save_model(folder / "trees.ubj")
    onnx.save(_net(onnx, helper, numpy_helper, TensorProto), folder / "net.onnx")
    golden.drop(columns="like").to_parquet(folder / "golden.parquet", index=False)
    (folder / "stack.yaml").write_text(STACK, encoding="utf-8")


def _net(onnx: Any, helper: Any, numpy_helper: Any, kinds: Any) -> Any:
    """tanh of a weighted sum of all that is read."""
    draw = np.random.default_rng(0)
    widths = {"tags": (kinds.INT64, 4), "tokens": (kinds.INT64, 5), "n": (kinds.FLOAT, 2)}
    nodes = [helper.make_node("Cast", [name], [f"{name}_f"], to=kinds.FLOAT) for name in widths]
    nodes += [
        helper.make_node("Concat", [f"{name}_f" for name in widths], ["all"], axis=1),
        helper.make_node("MatMul", ["all", "w"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["answer"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, kind, ["rows", width]) for name, (kind, width) in widths.items()],
        [helper.make_tensor_value_info("answer", kinds.FLOAT, ["rows", 1])],
        [numpy_helper.from_array((draw.normal(size=(11, 1)) / 50).astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    """Train aside, then rename, so that a half-trained folder is never found."""
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        train(fresh)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


if __name__ == "__main__":
    main()
