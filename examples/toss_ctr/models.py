"""The kinds of model: how each is trained on a fold, and asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.toss_ctr import forests, keras_wide_deep, learn
from examples.toss_ctr.dcnv3 import DCNv3
from examples.toss_ctr.folds import Fold
from examples.toss_ctr.nets import MLP
from examples.toss_ctr.sizes import Sizes
from examples.toss_ctr.wide_deep import WideDeep
from examples.toss_ctr.xdeepfm import XDeepFM

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        title: what people call it.
        trainer: the library that trains it.
        forest: whether it is trees.
        train: sizes, a fold, what was clicked and a seed -> the model.
        ask: the model, what a workflow made of rows, and which of them (all, if not said) -> its library's own
            logit of a click, [rows].
    """

    title: str
    trainer: str
    forest: bool
    train: Callable[[Sizes, Fold, NDArray[np.float32], int], Any]
    ask: Callable[..., NDArray[np.float32]]


KINDS = {
    "xgb_depthwise": Kind("XGBoost, depthwise", "XGBoost", True, forests.depthwise, forests.ask),
    "xgb_lossguide": Kind("XGBoost, lossguide", "XGBoost", True, forests.lossguide, forests.ask),
    "catboost": Kind("CatBoost", "CatBoost", True, forests.catboost_trees, forests.ask),
    "mlp": Kind("MLP", "PyTorch", False, learn.trainer(MLP), learn.ask),
    "xdeepfm": Kind("xDeepFM", "PyTorch", False, learn.trainer(XDeepFM), learn.ask),
    "dcnv3": Kind("DCNv3", "PyTorch", False, learn.trainer(DCNv3), learn.ask),
    "wide_deep_projected": Kind(
        *("Wide & Deep, BiGRU projected", "PyTorch", False),
        learn.trainer(lambda sizes, tables: WideDeep(sizes, tables, whole=False), averaged=True),
        learn.ask,
    ),
    "wide_deep_whole": Kind(
        *("Wide & Deep, BiGRU whole", "PyTorch", False),
        learn.trainer(lambda sizes, tables: WideDeep(sizes, tables, whole=True), averaged=True),
        learn.ask,
    ),
    "wide_deep_keras": Kind("Wide & Deep", "Keras", False, keras_wide_deep.train, keras_wide_deep.ask),
}
