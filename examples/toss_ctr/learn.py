"""Training a PyTorch net: a warm-up, a rate that is halved, an end by AUC; or weights averaged over the epochs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from examples.toss_ctr.folds import Features, Fold
from examples.toss_ctr.nets import Net
from examples.toss_ctr.sizes import Sizes

__all__ = ["ask", "trainer"]

_CHUNK = 4096  # rows that are asked about at once


def trainer(
    build: Callable[[Sizes, Sequence[int]], Net], averaged: bool = False
) -> Callable[[Sizes, Fold, NDArray[np.float32], int], Net]:
    """What builds a net and trains it on the other folds' rows.

    Args:
        build: sizes and the rows of its tables -> the net.
        averaged: whether its weights are the mean of those after each of `swa_epochs` epochs, at one rate; else it is
            the best of `epochs` by the held fold's AUC.
    """

    def train(sizes: Sizes, fold: Fold, clicked: NDArray[np.float32], seed: int) -> Net:
        threads = torch.get_num_threads()
        torch.set_num_threads(sizes.threads)
        torch.manual_seed(seed)
        net = build(sizes, fold.tables)
        made = (_averaged if averaged else _best)(net, sizes, fold, clicked)
        torch.set_num_threads(threads)
        return made

    return train


def _averaged(net: Net, sizes: Sizes, fold: Fold, clicked: NDArray[np.float32]) -> Net:
    mean = torch.optim.swa_utils.AveragedModel(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=sizes.net_rate)
    for _ in range(sizes.swa_epochs):
        _epoch(net, optimizer, sizes, fold, clicked)
        mean.update_parameters(net)
    made: Net = mean.module.eval()
    return made


def _best(net: Net, sizes: Sizes, fold: Fold, clicked: NDArray[np.float32]) -> Net:
    optimizer = torch.optim.Adam(net.parameters(), lr=sizes.net_rate)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (sizes.warm_up + 1), total_iters=sizes.warm_up)
    halve = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=1)
    best, since, kept = -np.inf, 0, net.state_dict()
    for epoch in range(sizes.epochs):
        _epoch(net, optimizer, sizes, fold, clicked)
        reached = roc_auc_score(clicked[fold.held], ask(net, fold.features, fold.held))
        if epoch < sizes.warm_up:
            rise.step()
        else:
            halve.step(reached)
        since += 1
        if reached > best:
            best, since, kept = reached, 0, copy.deepcopy(net.state_dict())
        if since >= sizes.patience:
            break
    net.load_state_dict(kept)
    return net.eval()


def _epoch(net: Net, optimizer: Any, sizes: Sizes, fold: Fold, clicked: NDArray[np.float32]) -> None:
    net.train()
    yes = clicked[fold.learn] > 0
    weight = torch.tensor(float((~yes).sum() / yes.sum()))
    for rows in torch.randperm(len(fold.learn)).split(sizes.batch):
        chosen = fold.learn[rows.numpy()]
        optimizer.zero_grad()
        net.loss(
            net.scores(**_tensors(fold.features, chosen)), torch.from_numpy(clicked[chosen, None]), weight
        ).backward()
        optimizer.step()


def ask(net: Net, features: Features, rows: Any = slice(None)) -> NDArray[np.float32]:
    """PyTorch's own answer: the logit of a click, [rows]."""
    chosen = np.arange(len(features))[rows]
    parts = [np.empty(0, np.float32)]
    with torch.inference_mode():
        for at in range(0, len(chosen), _CHUNK):
            parts.append(net.eval()(**_tensors(features, chosen[at : at + _CHUNK]))["click_margin"][:, 0].numpy())
    return np.concatenate(parts)


def _tensors(features: Features, rows: NDArray[np.int64]) -> dict[str, Any]:
    return {name: torch.from_numpy(values) for name, values in features.of_net(rows).items()}
