"""Training a PyTorch net: small batches of shuffled rows, Adam."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["ask", "fit", "mlp"]


def mlp(width: int, layers: Sequence[int], last: int) -> nn.Sequential:
    """Dense layers with ReLU between them: width -> layers -> last."""
    made: list[nn.Module] = []
    for its in layers:
        made += [nn.Linear(width, its), nn.ReLU()]
        width = its
    return nn.Sequential(*made, nn.Linear(width, last))


def fit(
    net: nn.Module,
    inputs: Mapping[str, NDArray[Any]],
    targets: NDArray[Any],
    loss: Callable[[Any, Any], Any],
    epochs: int,
    batch: int,
    rate: float = 0.01,
) -> None:
    """Train on all rows.

    Args:
        net: its `scores`, rather than what it answers, are what it learns by.
        inputs: its input -> rows.
        targets: what `loss` compares the scores with, by row.
        loss: scores and targets -> a number.
        epochs: times that every row is seen.
        batch: rows of a step.
        rate: Adam's learning rate.
    """
    tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
    wanted = torch.from_numpy(targets)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(wanted)).split(batch):
            optimizer.zero_grad()
            loss(net.scores(**{name: values[rows] for name, values in tensors.items()}), wanted[rows]).backward()
            optimizer.step()
    net.eval()


def ask(net: nn.Module, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the net answers, by name."""
    with torch.inference_mode():
        made = net.eval()(**{name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in inputs.items()})
    return {name: values.numpy() for name, values in made.items()}
