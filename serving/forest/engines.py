"""The engines that answer forests, by name; a program says which one opens which file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tristage.serving.forest.engine import ForestEngine, ForestError

__all__ = ["ENGINES", "OpenForest", "open_forest"]


class OpenForest(Protocol):
    """The forests of a step, opened by an engine."""

    @property
    def features(self) -> int:
        """Columns of a row."""

    @property
    def outputs(self) -> int:
        """Columns of an answer."""

    def predict(self, rows: NDArray[np.float32], groups: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Answer rows.

        Args:
            rows: [rows, features].
            groups: [rows], the number of each row's group; a row of none (-1) is answered with NaN. None: group 0.

        Returns:
            The answers, [rows, outputs].

        Raises:
            ForestError: shapes do not fit, or the library refuses the rows.
        """


def _tristage(file: Path, threads: int) -> OpenForest:
    return ForestEngine(file)  # on the thread that asks, whatever `threads` says


def _onnxruntime(file: Path, threads: int) -> OpenForest:
    from tristage.serving.forest.onnxruntime import OnnxForest

    return OnnxForest(file, threads)


def _onedal(file: Path, threads: int) -> OpenForest:
    from tristage.serving.forest.onedal import open_onedal

    return open_onedal(file, threads)


def _xgboost(file: Path, threads: int) -> OpenForest:
    from tristage.serving.forest.xgboost import open_xgboost

    return open_xgboost(file, threads)


# name -> (file, threads it may use) -> the forests; a library is imported when a program names it
ENGINES: dict[str, Callable[[Path, int], OpenForest]] = {
    "tristage": _tristage,
    "onnxruntime": _onnxruntime,
    "onedal": _onedal,
    "xgboost": _xgboost,
}


def open_forest(engine: str, file: Path, threads: int = 1) -> OpenForest:
    """Open a step's forests.

    Args:
        engine: one of ENGINES.
        file: the file that the engine reads.
        threads: threads it may use.

    Raises:
        ForestError: the engine is unknown or not installed, or the file cannot be opened.
    """
    if engine not in ENGINES:
        raise ForestError(f"{file} asks for the engine {engine}; this tristage has {', '.join(ENGINES)}; tune it again")
    try:
        return ENGINES[engine](file, threads)
    except ModuleNotFoundError as error:
        raise ForestError(
            f"{file} is answered by {engine}, but {error.name} is not installed; install it with "
            "pip install 'tristage[tune]', or choose again without it: tristage tune"
        ) from error
