"""A step's forests -> the files that serving engines open; what can't be made is refused, with the reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from tristage.export.forest.engine_nodes import EngineRefusal
from tristage.export.forest.model import ForestSet
from tristage.export.forest.sources import write_sources
from tristage.export.forest.to_engine import pack_forests
from tristage.export.forest.to_onedal import onedal_arrays
from tristage.export.forest.to_onnx import forests_model
from tristage.serving.program_file import Choice

__all__ = ["CANDIDATES", "DEFAULTS", "Candidate", "write_default"]


@dataclass(frozen=True)
class Candidate:
    """A way to answer a step's forests.

    Attributes:
        engine: one of `tristage.serving.forest.ENGINES`.
        suffix: what its file's name ends with, after the recipe's `forest-HASH`.
        write: (forests, the file) -> writes it; raises EngineRefusal where the engine cannot take them.
        joins: whether it differs from another only in how it joins the forests of a bag, or of several targets.
    """

    engine: str
    suffix: str
    write: Callable[[ForestSet, Path], None]
    joins: bool = False


def _tristage(forests: ForestSet, path: Path) -> None:
    path.write_bytes(pack_forests(forests))


def _onnxruntime(forests: ForestSet, path: Path) -> None:
    onnx.save_model(forests_model(forests), path)


def _one_node(forests: ForestSet, path: Path) -> None:
    onnx.save_model(forests_model(forests, one_node=True), path)


def _onedal(forests: ForestSet, path: Path) -> None:
    _need("daal4py")
    np.savez(path, **onedal_arrays(forests))


def _xgboost(forests: ForestSet, path: Path) -> None:
    if any(forest.booster is None for forest in forests.all()):
        raise EngineRefusal("XGBoost did not train all of its forests")
    _need("xgboost")  # it reads the recipe, which is there


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise EngineRefusal(f"{package} is not installed: pip install 'tristage[tune]'")


# what a measurement calls it -> the way; every one that can take the forests is checked and measured
CANDIDATES = {
    "tristage": Candidate("tristage", ".bin", _tristage),
    "onnxruntime": Candidate("onnxruntime", ".onnx", _onnxruntime),
    "onnxruntime-joined": Candidate("onnxruntime", "-joined.onnx", _one_node, joins=True),
    "onedal": Candidate("onedal", ".npz", _onedal),
    "xgboost": Candidate("xgboost", ".json", _xgboost),
}
DEFAULTS = ("tristage", "onnxruntime")  # the first that can take the forests answers where nothing was measured


def write_default(forests: ForestSet, folder: Path) -> tuple[str, Choice]:
    """Write a step's forests and the file of the engine that answers them where nothing was measured.

    Returns:
        The recipe's name, and the engine for any number of rows.
    """
    recipe = write_sources(forests, folder)
    for name in DEFAULTS:
        candidate = CANDIDATES[name]
        file = Path(recipe).stem + candidate.suffix
        try:
            candidate.write(forests, folder / file)
        except EngineRefusal:
            continue
        return recipe, Choice(None, candidate.engine, file)
    raise AssertionError("ONNX Runtime takes every forest that is converted")
