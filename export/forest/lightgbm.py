"""LightGBM: a Booster, a scikit-learn wrapper, or the .txt file that save_model wrote.

LightGBM compares in float64; it is asked with float32 values, which is what features travel as. After early stopping it
answers with the trees up to the best iteration, and writes no others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.forest.model import Forest, ForestConverter, answers_of
from tristage.export.forest.recode import check_values, recode

__all__ = ["LIGHTGBM", "check_whole"]

_AUTOMATIC = re.compile(r"Column_\d+")
_CATEGORICAL, _MISSING_IS_ZERO = 0b1, 0b100  # in a node's decision type, whose bits 2 and 3 say what is missing


def convert(artifact: Any, what: str) -> Forest:
    """Convert a LightGBM model.

    Raises:
        ArtifactError: the file is missing, cut off or not LightGBM's, or the model is not fitted, has linear leaves,
            takes zeros for missing values, or has categories that are no whole numbers.
    """
    import lightgbm
    import treelite

    booster = _read(artifact, what) if isinstance(artifact, Path) else _booster(artifact, what)
    names = tuple(booster.feature_name())
    text = booster.model_to_string()
    if re.search(r"^is_linear=1$", text, re.MULTILINE):
        raise ArtifactError(f"{what}: its leaves are linear models; train it without linear_tree")
    _check_zeros(text, names, what)
    categories = _categories(booster, text, names, what)
    try:
        model = treelite.frontend.from_lightgbm(booster)
    except treelite.TreeliteError as error:
        raise ArtifactError(f"{what}: Treelite {treelite.__version__} cannot convert it ({error})") from error
    recode(model, categories)
    header = model.get_header_accessor()
    outputs = int(np.sum(header.get_field("num_class")))
    library = f"LightGBM {lightgbm.__version__}"
    return Forest(
        model=model,
        postprocessor=header.get_field("postprocessor"),
        features=booster.num_feature(),
        names=None if all(_AUTOMATIC.fullmatch(name) for name in names) else names,
        outputs=outputs,
        predict=answers_of(what, library, lambda rows: booster.predict(_frame(rows, names, categories)), outputs),
        margins=None
        if header.get_field("average_tree_output")[0]
        else answers_of(
            what, library, lambda rows: booster.predict(_frame(rows, names, categories), raw_score=True), outputs
        ),
        categories="exact" if categories else "trunc",
    )


def _read(path: Path, what: str) -> Any:
    import lightgbm

    check_whole(path, what)
    try:
        return lightgbm.Booster(model_file=path)
    except lightgbm.basic.LightGBMError as error:
        raise ArtifactError(
            f"{what}: LightGBM {lightgbm.__version__} cannot read {path} ({error})", path=path
        ) from error


def check_whole(path: Path, what: str) -> None:
    """Look at a file's own table of trees before LightGBM does, which ends the process over a file that was cut off.

    Raises:
        ArtifactError: the file is cut off, or is none of LightGBM's.
    """
    content = path.read_bytes()
    table = re.search(rb"^tree_sizes=([\d ]*)$", content, re.MULTILINE)
    at = content.find(b"\nTree=0\n") + 1
    for number, size in enumerate(table.group(1).split() if table else ()):
        if not content.startswith(b"Tree=%d\n" % number, at):
            break
        at += int(size)
    whole = content.startswith(b"tree\n") and table is not None and content.startswith(b"end of trees\n", at)
    if not whole or b"\nend of parameters\n" not in content:
        raise ArtifactError(
            f"{what}: {path} is no whole model of LightGBM 2.3 or later; save it again with save_model", path=path
        )


def _booster(artifact: Any, what: str) -> Any:
    import lightgbm

    if isinstance(artifact, lightgbm.Booster):
        return artifact
    if not isinstance(artifact, lightgbm.LGBMModel):
        raise ArtifactError(f"{what}: a {type(artifact).__name__} is no LightGBM model; give a Booster or an LGBMModel")
    try:
        return artifact.booster_
    except Exception as error:  # scikit-learn's NotFittedError, where scikit-learn is installed
        raise ArtifactError(f"{what}: the {type(artifact).__name__} is not fitted; call fit first") from error


def _check_zeros(text: str, names: Sequence[str], what: str) -> None:
    """A split that sends 0 and NaN one way, whatever lies beside them, is no comparison."""
    features, kinds = (
        re.findall(rf"^{field}=(.*)$", text, re.MULTILINE) for field in ("split_feature", "decision_type")
    )
    for in_tree, kind_in_tree in zip(features, kinds, strict=True):
        for feature, kind in zip(in_tree.split(), map(int, kind_in_tree.split()), strict=True):
            if kind & _MISSING_IS_ZERO and not kind & _CATEGORICAL:
                raise ArtifactError(
                    f"{what}: feature {names[int(feature)]} has zeros for missing values; train it without "
                    "zero_as_missing, and with NaN where a value is missing"
                )


def _categories(booster: Any, text: str, names: Sequence[str], what: str) -> dict[int, list[Any]]:
    """The categories of the DataFrame it was trained on: feature -> values in the order of their codes."""
    values = booster.pandas_categorical
    if not values:
        return {}
    named = re.search(r"^\[categorical_feature: ([\d,]+)\]$", text, re.MULTILINE)
    features = [] if named is None else sorted(map(int, named.group(1).split(",")))
    if len(features) != len(values):
        raise ArtifactError(
            f"{what}: it does not say which of its categorical features ({', '.join(names[f] for f in features)}) had "
            "categories in the DataFrame it was trained on; train on whole numbers and name the features in "
            "categorical_feature"
        )
    categories = dict(zip(features, values, strict=True))
    check_values(categories, names, what)
    return categories


def _frame(rows: NDArray[Any], names: Sequence[str], categories: Mapping[int, Sequence[Any]]) -> Any:
    """The rows as LightGBM wants them: as a DataFrame where it looks categories up."""
    if not categories:
        return rows
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(names))
    for feature, values in categories.items():
        frame[names[feature]] = pd.Categorical(rows[:, feature], categories=values)
    return frame


LIGHTGBM = ForestConverter(name="LightGBM", suffixes=(".txt",), modules=("lightgbm",), convert=convert)
