"""The process that trains NN2 and NN3 (`nets.py`), seen from the one that trains everything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from examples.recsys2021.kept import remove
from examples.recsys2021.sizes import Sizes
from tristage.errors import ArtifactError

__all__ = ["NetsProcess"]

STEPS = ("nn2", "nn3")


class NetsProcess:
    """Loads PyTorch as soon as it is entered; trains once it has been given rows; is gone when it is left.

    Args:
        sizes: how large everything is.
        bars: show how far it is.
        folder: takes the nets' programs and their answers; what is there is not trained again.
    """

    def __init__(self, sizes: Sizes, bars: Progress, folder: Path) -> None:
        self._sizes = sizes
        self._bars = bars
        self._folder = folder

    def __enter__(self) -> NetsProcess:
        self._work = self._folder / ".part-nets"
        remove(self._work)
        self._work.mkdir()
        (self._work / "sizes.json").write_text(json.dumps(asdict(self._sizes)))
        # `examples` is found from the repository's root, which must then be looked in
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        with (self._work / "complaints").open("w") as complaints:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "examples.recsys2021.nets", str(self._work), str(self._folder.absolute())],
                cwd=Path(__file__).parents[2],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        if self._watcher.ident is not None:
            self._watcher.join()
        remove(self._work)

    def lacking(self) -> list[str]:
        """The nets that are not trained yet."""
        return [step for step in STEPS if not (self._folder / f"{step}.npy").is_file()]

    def give(
        self,
        step: str,
        inputs: Mapping[str, NDArray[Any]],
        learn: NDArray[np.int64],
        answer: NDArray[np.int64],
        targets: NDArray[Any],
    ) -> None:
        """Hand over a net's rows.

        Args:
            step: "nn2" or "nn3".
            inputs: the net's inputs of all rows, by name.
            learn: which rows to learn from.
            answer: which rows to answer.
            targets: [learn, 4], 0 or 1.
        """
        np.savez(
            self._work / f"{step}.npz",
            targets=targets.astype(np.float32),
            **{f"learn.{key}": values[learn] for key, values in inputs.items()},
            **{f"answer.{key}": values[answer] for key, values in inputs.items()},
        )

    def start(self, cardinalities: Mapping[str, int], categories: list[str]) -> None:
        """Begin to train what is lacking; `categories` are the columns of NN2's input of that name."""
        job = {"nets": self.lacking(), "cardinalities": dict(cardinalities), "categories": categories}
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failed() from error
        self._watcher.start()

    def answers(self) -> dict[str, NDArray[np.float32]]:
        """Wait for the nets and return their answers, [rows, 4] each; their programs are in the folder by then.

        Raises:
            ArtifactError: the process ended with an error.
        """
        self._watcher.join()
        if self._process.wait() != 0:
            raise self._failed()
        return {step: np.load(self._folder / f"{step}.npy") for step in STEPS}

    def _failed(self) -> ArtifactError:
        said = (self._work / "complaints").read_text().strip()
        return ArtifactError(f"NN2 and NN3 were not trained; their process ended with:\n{said}")

    def _watch(self) -> None:
        """Show what the process says it has done: lines of "<net> <batches> <of>"."""
        tasks = {step: self._bars.add_task(f"{step} (PyTorch)", total=None) for step in self.lacking()}
        for line in self._process.stdout or ():
            step, done, total = line.split()
            self._bars.update(tasks[step], completed=int(done), total=int(total))
