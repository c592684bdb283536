"""What NN2 and NN3 share: a frozen token table, a GRU over it, and the loop that trains them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.recsys2021.rows import token_classes
from examples.recsys2021.sizes import Sizes

__all__ = ["GRU", "fit", "frozen_table", "predict", "save"]

Batch = Mapping[str, Tensor]


def frozen_table(sizes: Sizes) -> Tensor:
    """Stands in for multilingual BERT's first layer: words of one class lie near each other; the pad's row is 0."""
    draw = np.random.default_rng(sizes.seed + 5)
    centres = 0.08 * draw.normal(size=(sizes.topics + 3, sizes.bert))
    centres[0] = 0.0
    table = centres[token_classes(sizes)] + 0.04 * draw.normal(size=(sizes.vocabulary, sizes.bert))
    table[0] = 0.0
    return torch.from_numpy(table.astype(np.float32))


class GRU(nn.Module):  # type: ignore[misc]
    """A text as the state of a GRU after its last token: [rows, tokens] int64 -> [rows, width]."""

    def __init__(self, table: Tensor, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(table, freeze=True)
        self.gru = nn.GRU(table.shape[1], width, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.gru(self.words(tokens))
        last = (tokens != 0).sum(1).clamp(min=1) - 1  # of an empty text the state after one pad
        place = last[:, None, None].expand(-1, 1, states.shape[2])
        return torch.gather(states, 1, place).squeeze(1)


def fit(
    net: nn.Module, inputs: Batch, targets: Tensor, epochs: int, batch: int, seed: int, step: Callable[[], None]
) -> None:
    """Train a net whose answers are probabilities; `step` is called after each batch."""
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    steps = epochs * (len(targets) // batch)
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.2)
    draw = np.random.default_rng(seed)
    net.train()
    for _ in range(epochs):
        for rows in _by_length(_lengths(inputs), batch, draw):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy(net(**_batch(inputs, rows)), targets[rows]).backward()
            optimizer.step()
            schedule.step()
            step()
    net.eval()


def predict(net: nn.Module, inputs: Batch) -> NDArray[np.float32]:
    """The net's answers: [rows, 4]."""
    lengths = _lengths(inputs)
    made = np.empty((len(lengths), 4), np.float32)
    net.eval()
    for rows in _by_length(lengths, 128, None):
        with torch.no_grad():
            made[rows.numpy()] = net(**_batch(inputs, rows)).numpy()
    return made


def save(net: nn.Module, inputs: Batch, file: Path) -> None:
    """Write the net as a torch.export program that takes 1 to 65536 rows."""
    rows = torch.export.Dim("rows", min=1, max=65536)
    example = {name: values[:4] for name, values in inputs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the GRU's list of its own weights
        program = torch.export.export(
            net.eval(), (), kwargs=example, dynamic_shapes={name: {0: rows} for name in example}, strict=False
        )
    torch.export.save(program, file)


def _lengths(inputs: Batch) -> NDArray[np.int64]:
    return np.asarray((inputs["tokens"] != 0).sum(1).numpy(), np.int64)


def _by_length(lengths: NDArray[np.int64], batch: int, draw: np.random.Generator | None) -> Iterator[Tensor]:
    """Batches of texts of about one length, so that little padding is computed; shuffled where `draw` is given."""
    if draw is None:
        yield from torch.from_numpy(np.argsort(lengths, kind="stable")).split(batch)
        return
    order = draw.permutation(len(lengths))[: len(lengths) // batch * batch]  # a batch of one row has no variance
    near = 16 * batch
    blocks = [order[at : at + near] for at in range(0, len(order), near)]
    batches = [
        rows
        for block in blocks
        for rows in np.split(block[np.argsort(lengths[block], kind="stable")], len(block) // batch)
    ]
    for index in draw.permutation(len(batches)):
        yield torch.from_numpy(batches[index])


def _batch(inputs: Batch, rows: Tensor) -> dict[str, Tensor]:
    """The rows of a batch, with the columns of pads that no text of it needs cut off: the answers stay the same."""
    batch = {name: values[rows] for name, values in inputs.items()}
    longest = int((batch["tokens"] != 0).sum(1).max().clamp(min=1))
    batch["tokens"] = batch["tokens"][:, :longest]
    return batch
