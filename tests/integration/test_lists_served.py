"""Lists of answers through a real Triton: ids of 64 bits, scores and booleans of a PyTorch net's top-k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tristage.client import Client, verify
from tristage.export import export
from tristage.serving import serve
from tristage.stack import NetStep, Stack

torch = pytest.importorskip("torch")


class Best(torch.nn.Module):
    """The best four of twenty: their ids, which float32 cannot tell apart, their scores, and whether those are high."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.randn(3, 20))
        self.register_buffer("ids", 2**40 + torch.arange(20))

    def forward(self, x: Any) -> Any:
        score, at = (x[:, :1] * self.weights[0] + x[:, 1:2].nan_to_num() * self.weights[1] + self.weights[2]).topk(4)
        return {"item": self.ids[at], "score": score, "sure": score > 0}


@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_every_type_over_http_and_grpc(layout: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    net, x = Best().eval(), np.random.default_rng(5).normal(size=(150, 2)).astype(np.float32)
    rows = pd.DataFrame(x, columns=["a", "b"])
    rows.iloc[:100].to_parquet(tmp_path / "golden.parquet")
    stack = Stack(
        "lists",
        {"nn": NetStep(net, {"x": ("a", "b")}, examples={"x": x[:2]})},
        {"items": "nn.item*", "scores": "nn.score*", "sure": "nn.sure*", "first": "nn.item0"},
        golden=tmp_path / "golden.parquet",
    )
    export(stack, tmp_path / "repository", layout=layout, max_batch=32)
    x[-1, 1] = np.nan
    rows = pd.DataFrame(x, columns=["a", "b"])
    with torch.no_grad():
        wanted = {name: values.numpy() for name, values in net(torch.from_numpy(x)).items()}
    with serve(tmp_path / "repository", cores=[0], http_port=0, grpc_port=0, metrics_port=0) as server:
        for url in (server.http_url, server.grpc_url):
            with Client(url) as client:
                assert verify(client, tmp_path / "repository").passed
                for some in (slice(0, 1), slice(149, 150), slice(0, 150)):
                    answers = client.predict(rows.iloc[some])
                    items, scores, sure = (np.stack(list(answers[name])) for name in ("items", "scores", "sure"))
                    np.testing.assert_array_equal(items, wanted["item"][some], strict=True)
                    np.testing.assert_array_equal(sure, wanted["sure"][some], strict=True)
                    np.testing.assert_allclose(scores, wanted["score"][some], rtol=1e-6, atol=1e-6)
                    assert answers["first"].tolist() == items[:, 0].tolist()
