"""Nets that recommenders are made of: exported in one stack, served by a real Triton, equal to their frameworks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tristage.client import Client
from tristage.export import export
from tristage.export.net import read_net
from tristage.serving import serve


@pytest.mark.slow
def test_every_net_is_served_as_its_framework_answers(net_models: Any, tmp_path: Path, cli: Callable[..., Any]) -> None:
    nets = net_models
    trained = nets.train()
    stack = nets.make_stack(trained, tmp_path)
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
            answers = client.predict(nets.frame(rows))
    for name, net in trained.items():
        wanted = read_net(name, net, examples=nets.examples_of(name, net)).predict(nets.inputs_of(name, rows))[0]
        column = wanted[:, int(nets.COLUMNS.get(name, "score0")[-1])]
        np.testing.assert_allclose(answers[f"out_{name}"], column, atol=1e-5, err_msg=name)
