"""Trains NN2 and NN3 in a process of its own, while the caller trains the other models.

`python -m examples.recsys2021.nets FOLDER` reads `job.json`, `nn2.npz` and `nn3.npz` there, and leaves `nn2.pt2`,
`nn3.pt2` and their answers for week 4, `nn2.npy` and `nn3.npy`. Each line of its output is "<net> <batches done>".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.recsys2021.nn2 import NN2
from examples.recsys2021.nn3 import NN3
from examples.recsys2021.sizes import Sizes
from examples.recsys2021.text import fit, frozen_table, predict, save

__all__ = ["steps_of", "train_nets"]


def steps_of(sizes: Sizes) -> dict[str, int]:
    """Batches that each net's training reads."""
    return {
        "nn2": sizes.nn2_epochs * (sizes.nn2_rows // sizes.nn2_batch),
        "nn3": sizes.nn3_epochs * (sizes.nn3_rows // sizes.nn3_batch),
    }


def train_nets(folder: Path) -> None:
    """Do the job that lies in `folder`."""
    job = json.loads((folder / "job.json").read_text())
    sizes = Sizes(**{name: tuple(value) if isinstance(value, list) else value for name, value in job["sizes"].items()})
    rows: dict[str, int] = job["cardinalities"]
    torch.set_num_threads(1)
    table = frozen_table(sizes)
    for step in ("nn2", "nn3"):
        torch.manual_seed(sizes.seed)
        stored = {name: torch.from_numpy(values) for name, values in np.load(folder / f"{step}.npz").items()}
        targets = stored.pop("targets")
        learn = {name.removeprefix("learn."): values for name, values in stored.items() if name.startswith("learn.")}
        answer = {name.removeprefix("answer."): values for name, values in stored.items() if name.startswith("answer.")}
        net = _net(step, sizes, table, rows, job["categories"], learn)
        done = iter(range(1, sys.maxsize))
        epochs, batch = {"nn2": (sizes.nn2_epochs, sizes.nn2_batch), "nn3": (sizes.nn3_epochs, sizes.nn3_batch)}[step]
        fit(net, learn, targets, epochs, batch, sizes.seed, lambda step=step, done=done: print(step, next(done), flush=True))
        np.save(folder / f"{step}.npy", predict(net, answer))
        save(net, answer, folder / f"{step}.pt2")


def _net(step: str, sizes: Sizes, table: Any, rows: dict[str, int], categories: list[str], inputs: Any) -> torch.nn.Module:
    if step == "nn2":
        encoded = inputs["other"].shape[1] - 3
        kinds = {name: rows[name] for name in categories}
        return NN2(sizes, table, rows["users"], rows["hashtags"], kinds, encoded)
    numbers = inputs["numeric"].shape[1]
    return NN3(sizes, table, rows["users"], rows["c_language"], rows["c_media"], rows["c_tweet_type"], numbers)


if __name__ == "__main__":
    train_nets(Path(sys.argv[1]))
