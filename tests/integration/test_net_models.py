"""Nets that recommenders are made of: exported in one stack, served by a real Triton, equal to their frameworks."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tristage.client import Client
from tristage.export import export
from tristage.export.net import read_net
from tristage.serving import serve
from tristage.stack import ListInput, NetStep, Stack

LISTS = {"tokens": 48, "hashtags": 8, "history": 512, "basket": 20, "genres": 5, "seen": 40, "categories": 20}


@pytest.fixture(scope="module")
def nets() -> Any:
    root = Path(__file__).parents[2]
    sys.path.append(str(root))  # the examples' nets
    spec = importlib.util.spec_from_file_location("net_models", root / "tests" / "net_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(root))


def frame(rows: dict[str, np.ndarray]) -> pd.DataFrame:
    """Lists without their pads, where zeros at their end are pads; the client pads them."""

    def cut(values: np.ndarray) -> list[Any]:
        return values[: len(values) - int((values[::-1] != 0).argmax()) if values.any() else 0].tolist()

    return pd.DataFrame(
        {name: [cut(row) for row in values] if name in LISTS else values for name, values in rows.items()}
    )


@pytest.mark.slow
def test_every_net_is_served_as_its_framework_answers(nets: Any, tmp_path: Path, cli: Callable[..., Any]) -> None:
    trained = nets.train()
    raw = frame(nets.make_rows(60, 1))
    # an all-empty list column has no type in Parquet, and these have one
    raw.to_parquet(tmp_path / "golden.parquet", index=False)
    columns = {"vae": "score0", "nn1": "score0", "nn2": "score0", "nn3": "score3"}
    stack = Stack(
        "nets",
        {name: NetStep(net, nets.READS[name], examples=nets.examples_of(name, net)) for name, net in trained.items()},
        {f"out_{name}": f"{name}.{columns.get(name, 'score')}" for name in trained},
        inputs={name: ListInput(length, 0) for name, length in LISTS.items()},
        golden=tmp_path / "golden.parquet",
    )
    made = export(stack, tmp_path / "repository", layout="fused")
    assert made.parity is not None
    assert max(made.parity.differences.values()) < 1e-5
    done = {step: [each["rewrite"] for each in found if each["done"]] for step, found in made.manifest.rewrites.items()}
    for step, directions in (("nn2", 1), ("nn3", 1), ("wide_deep", 2)):
        assert done[step].count("recurrence_engine") == done[step].count("fold_embeddings") == directions
    shown = cli("inspect", tmp_path / "repository")
    assert shown.code == 0, shown.err
    assert "fold_embeddings" in shown.out
    rows = nets.make_rows(7, 2)
    with serve(tmp_path / "repository", cores=[0], http_port=0, grpc_port=0, metrics_port=0) as server:
        verified = cli("verify", tmp_path / "repository", "--url", server.grpc_url, "--json")
        assert verified.code == 0, verified.err
        assert max(json.loads(verified.out)["differences"].values()) <= 1e-5
        with Client(server.grpc_url) as client:
            answers = client.predict(frame(rows))
    for name, net in trained.items():
        wanted = read_net(name, net, examples=nets.examples_of(name, net)).predict(nets.inputs_of(name, rows))
        column = wanted[:, int(columns.get(name, "score0")[-1])]
        np.testing.assert_allclose(answers[f"out_{name}"], column, atol=1e-5, err_msg=name)
