"""XGBoost: a Booster, a scikit-learn wrapper, or a .ubj or .json file.

A Booster answers with all its trees; a wrapper that stopped early, or the file it wrote, with those up to its best
iteration, as in XGBoost itself. A Booster of multi:softmax answers labels, a wrapper probabilities.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.forest.model import Forest, ForestConverter, answers_of
from tristage.export.forest.recode import check_values, recode
from tristage.serving.forest.xgboost import encode

__all__ = ["XGBOOST", "of_booster", "read_booster"]


def convert(artifact: Any, what: str) -> Forest:
    """Convert an XGBoost model.

    Raises:
        ArtifactError: the file is missing or not XGBoost's, or the model is not fitted, is linear, takes another value
            than NaN for missing, or has categories that are no whole numbers.
    """
    import xgboost

    if isinstance(artifact, Path):
        booster = read_booster(artifact, what)
        said = booster.attr("scikit_learn")  # a wrapper's file says so
        wrapped = said is not None
        classifier = wrapped and json.loads(said).get("_estimator_type") == "classifier"
    else:
        booster = _booster(artifact, what)
        wrapped = isinstance(artifact, xgboost.XGBModel)
        classifier = isinstance(artifact, xgboost.XGBClassifier)
    best = booster.attr("best_iteration")
    if wrapped and best is not None:
        booster = booster[: int(best) + 1]
    softmax = _config(booster)["objective"]["name"] == "multi:softmax"
    return of_booster(booster, labels=softmax and not classifier, what=what)


def of_booster(booster: Any, *, labels: bool, what: str) -> Forest:
    """A Booster all of whose trees answer, as a forest.

    Args:
        booster: the xgboost.Booster.
        labels: whether it answers labels of multi:softmax, not their probabilities.
        what: what it is called in messages.

    Raises:
        ArtifactError: it is linear, or has categories that are no whole numbers.
    """
    import scipy.special
    import treelite
    import xgboost

    config = _config(booster)
    name = config["gradient_booster"]["name"]
    if name not in ("gbtree", "dart"):
        raise ArtifactError(f"{what}: it is a {name} model, not trees; only gbtree and dart models are converted")
    document, categories = _categories(booster)
    names = booster.feature_names
    check_values(categories, names or [str(number) for number in range(booster.num_features())], what)
    try:
        if categories:
            model = treelite.frontend.from_xgboost_json(json.dumps(document))
        else:
            model = treelite.frontend.from_xgboost(booster)
    except treelite.TreeliteError as error:
        raise ArtifactError(f"{what}: Treelite {treelite.__version__} cannot convert it ({error})") from error
    recode(model, categories)
    margins = int(np.sum(model.get_header_accessor().get_field("num_class")))
    softmax = config["objective"]["name"] == "multi:softmax"
    outputs = 1 if labels else margins
    library = f"XGBoost {xgboost.__version__}"

    def ask(rows: NDArray[Any], kind: str) -> Any:
        codes = encode(rows, categories)
        return booster.inplace_predict(codes, validate_features=False, predict_type=kind)

    def predict(rows: NDArray[Any]) -> Any:
        # as XGBClassifier.predict_proba does
        return scipy.special.softmax(ask(rows, "margin"), axis=1) if softmax and not labels else ask(rows, "value")

    return Forest(
        model=model,
        postprocessor="argmax" if labels else model.get_header_accessor().get_field("postprocessor"),
        features=booster.num_features(),
        names=None if names is None else tuple(names),
        outputs=outputs,
        predict=answers_of(what, library, predict, outputs),
        margins=answers_of(what, library, lambda rows: ask(rows, "margin"), margins),
        categories="exact" if categories else "floor",
        booster=booster,
        codes={feature: tuple(map(int, values)) for feature, values in categories.items()},
    )


def _config(booster: Any) -> Any:
    return json.loads(booster.save_config())["learner"]


def read_booster(path: Path, what: str) -> Any:
    """Read a file that XGBoost wrote; raises an ArtifactError where it cannot."""
    import xgboost

    booster = xgboost.Booster()
    try:
        booster.load_model(path)
    except xgboost.core.XGBoostError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(
            f"{what}: XGBoost {xgboost.__version__} cannot read {path} ({reason})", path=path
        ) from error
    return booster


def _booster(artifact: Any, what: str) -> Any:
    import xgboost

    if isinstance(artifact, xgboost.Booster):
        return artifact
    if not isinstance(artifact, xgboost.XGBModel):
        raise ArtifactError(f"{what}: a {type(artifact).__name__} is no XGBoost model; give a Booster or an XGBModel")
    if artifact.missing is not None and not math.isnan(artifact.missing):
        raise ArtifactError(
            f"{what}: the {type(artifact).__name__} takes {artifact.missing} for missing, which its trees do not say; "
            "train it with NaN where a value is missing"
        )
    try:
        return artifact.get_booster()
    except Exception as error:  # scikit-learn's NotFittedError, where scikit-learn is installed
        raise ArtifactError(f"{what}: the {type(artifact).__name__} is not fitted; call fit first") from error


def _categories(booster: Any) -> tuple[Any, dict[int, list[Any]]]:
    """The model as JSON without the categories of the DataFrame it was trained on, and those: feature -> values."""
    if "c" not in (booster.feature_types or ()):
        return None, {}
    document = json.loads(booster.save_raw("json"))
    stored = document["learner"]["gradient_booster"].get("gbtree", document["learner"]["gradient_booster"])["model"]
    # files from before 3.1 have none: they know codes only, and so do models trained on an array
    kept = stored.get("cats", {"enc": []})["enc"]
    stored["cats"] = {"enc": [], "feature_segments": [], "sorted_idx": []}
    return document, {feature: _values(entry) for feature, entry in enumerate(kept) if entry["values"]}


def _values(entry: Mapping[str, Any]) -> list[Any]:
    """Categories in the order of their codes: whole numbers, or texts as bytes end to end."""
    if "offsets" not in entry:
        return list(entry["values"])
    text = bytes(value % 256 for value in entry["values"])
    return [
        text[start:end].decode(errors="replace")
        for start, end in zip(entry["offsets"], entry["offsets"][1:], strict=False)
    ]


XGBOOST = ForestConverter(name="XGBoost", suffixes=(".ubj", ".json"), modules=("xgboost",), convert=convert)
