"""Trains NN2 and NN3 in a process of its own, while the caller trains the other models.

`python -m examples.recsys2021.nets JOB FOLDER` loads what it needs, waits for a line on stdin, then reads `nn2.npz` and
`nn3.npz` in JOB, and leaves `nn2.pt2`, `nn3.pt2` and their answers for week 4, `nn2.npy` and `nn3.npy`, in FOLDER. Each
line of its output is "<net> <batches done> <of how many>".
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.recsys2021.kept import aside, kept_array
from examples.recsys2021.nn2 import NN2
from examples.recsys2021.nn3 import NN3
from examples.recsys2021.sizes import Sizes
from examples.recsys2021.text import GRU, fit, frozen_table, predict, save

__all__ = ["train_nets"]


def train_nets(folder: Path, to: Path) -> None:
    """Do the job that `NetsProcess` left in `folder` and sends on stdin; what is made is kept in `to`."""
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads((folder / "sizes.json").read_text()).items()
    }
    sizes = Sizes(**given)
    torch.set_num_threads(1)
    table = frozen_table(sizes)
    save(GRU(table[:4, :4], 4), {"tokens": torch.ones(4, 4, dtype=torch.int64)}, folder / "first.pt2")  # loads modules
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_caller, daemon=True).start()
    rows: dict[str, int] = job["cardinalities"]
    for step in job["nets"]:
        torch.manual_seed(sizes.seed)
        stored = {name: torch.from_numpy(values) for name, values in np.load(folder / f"{step}.npz").items()}
        targets = stored.pop("targets")
        learn = {name.removeprefix("learn."): values for name, values in stored.items() if name.startswith("learn.")}
        answer = {name.removeprefix("answer."): values for name, values in stored.items() if name.startswith("answer.")}
        net = _net(step, sizes, table, rows, job["categories"], learn)
        epochs, batch = {"nn2": (sizes.nn2_epochs, sizes.nn2_batch), "nn3": (sizes.nn3_epochs, sizes.nn3_batch)}[step]
        fit(net, learn, targets, epochs, batch, sizes.seed, _Told(step, epochs * (len(targets) // batch)))
        with aside(to / f"{step}.pt2") as part:
            save(net, answer, part)
        kept_array(to / f"{step}.npy", functools.partial(predict, net, answer))


def _end_with_caller() -> None:
    """The caller's end of stdin is closed when it dies, however that happens."""
    while os.read(0, 1):
        pass
    os._exit(1)


class _Told:
    """Each call writes "<net> <calls so far> <calls in all>"."""

    def __init__(self, step: str, total: int) -> None:
        self.step, self.done, self.total = step, 0, total

    def __call__(self) -> None:
        self.done += 1
        sys.stdout.write(f"{self.step} {self.done} {self.total}\n")
        sys.stdout.flush()


def _net(step: str, sizes: Sizes, table: Any, rows: dict[str, int], categories: list[str], inputs: Any) -> Any:
    if step == "nn2":
        encoded = inputs["other"].shape[1] - 3
        kinds = {name: rows[name] for name in categories}
        return NN2(sizes, table, rows["nn2"], rows["hashtags"], kinds, encoded)
    numbers = inputs["numeric"].shape[1]
    return NN3(sizes, table, rows["nn3"], rows["c_language"], rows["c_media"], rows["c_tweet_type"], numbers)


if __name__ == "__main__":
    train_nets(Path(sys.argv[1]), Path(sys.argv[2]))
