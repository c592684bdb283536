"""A Treelite checkpoint, answered in this process by Treelite's own interpreter: what FIL would answer on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.place import Checkpoint, PlacedModel
from tristage.serving.graph import Tensor

__all__ = ["OpenCheckpoint"]


@dataclass(frozen=True)
class OpenCheckpoint:
    """An opened checkpoint; evaluated as a Graph is.

    Attributes:
        inputs: its rows.
        outputs: its answer.
        model: the treelite.Model, read back from the file.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    model: Any

    @classmethod
    def of(cls, placed: PlacedModel, folder: Path) -> OpenCheckpoint:
        """Open the checkpoint of a placed model, in the folder where it waits to be written.

        Raises:
            ArtifactError: Treelite cannot read it.
        """
        import treelite

        assert isinstance(placed.graph, Checkpoint)
        try:
            model = treelite.Model.deserialize(folder / placed.graph.file)
        except (treelite.TreeliteError, OSError) as error:
            raise ArtifactError(f"step {', '.join(placed.steps)}: its checkpoint cannot be read ({error})") from error
        dtype = np.dtype(np.float32)
        rows, answers = (
            tuple(Tensor(tensor.name, "TYPE_FP32", dtype, tensor.width) for tensor in tensors)
            for tensors in (placed.inputs, placed.outputs)
        )
        return cls(rows, answers, model)

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer rows; {output: [rows, width] float32}."""
        import treelite

        (given,), (made,) = self.inputs, self.outputs
        rows = np.ascontiguousarray(tensors[given.name])
        if len(rows) == 0:
            return {made.name: np.empty((0, made.width), np.float32)}
        answers = np.asarray(treelite.gtil.predict(self.model, rows, nthread=1), np.float32).reshape(len(rows), -1)
        if answers.shape[1] == 1:  # asked for probabilities, FIL answers a single column beside its complement
            answers = np.concatenate([1 - answers, answers], axis=1)
        return {made.name: answers}
