"""Forests in ONNX Runtime: tree ensembles in one graph, an output for each group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tristage.serving.forest.engine import ForestError
from tristage.serving.forest.members import by_group
from tristage.serving.graph import Graph, GraphError

__all__ = ["OnnxForest"]

Rows = NDArray[np.float32]


class OnnxForest:
    """A graph of input `rows` and an output for each group, in their order; of a group's rows it runs its part alone.

    Attributes:
        features: columns of a row.
        outputs: columns of an answer.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Open a graph that `tristage.export.forest.to_onnx.forests_model` made.

        Raises:
            ForestError: the file is missing, or is no graph that this ONNX Runtime can run.
        """
        try:
            graph = Graph.open(path, threads)
        except GraphError as error:
            raise ForestError(str(error)) from error
        self._session = graph.session
        self._groups = [output.name for output in graph.outputs]
        self._options = onnxruntime.RunOptions()
        self._options.only_execute_path_to_fetches = True
        self.features: int = graph.inputs[0].width
        self.outputs: int = graph.outputs[0].width

    def predict(self, rows: Rows, groups: NDArray[np.int64] | None = None) -> Rows:
        """Answer rows; see `tristage.serving.forest.engines.OpenForest`."""
        return by_group(self, len(self._groups), rows, groups, self._answer)

    def _answer(self, rows: Rows, group: int) -> Any:
        try:
            return self._session.run([self._groups[group]], {"rows": rows}, self._options)[0]
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ForestError(str(error)) from error
