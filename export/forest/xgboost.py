"""XGBoost: a Booster, a scikit-learn wrapper, or a .ubj or .json file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.forest.model import Forest, ForestConverter

__all__ = ["XGBOOST"]

# objectives that answer a label -> those that answer what it comes from
_LABELS = {"multi:softmax": "multi:softprob", "binary:hinge": "binary:logistic"}


def convert(artifact: Any, what: str) -> Forest:
    """Convert an XGBoost model.

    Raises:
        ArtifactError: the file is missing or not XGBoost's, or the model is not fitted, is linear, or answers labels.
    """
    import treelite
    import xgboost

    if isinstance(artifact, Path):
        booster = xgboost.Booster()
        try:
            booster.load_model(artifact)
        except xgboost.core.XGBoostError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ArtifactError(
                f"{what}: XGBoost {xgboost.__version__} cannot read {artifact} ({reason})", path=artifact
            ) from error
        stops = booster.attr("scikit_learn") is not None
    else:
        stops = isinstance(artifact, xgboost.XGBModel)
        booster = _booster(artifact, what)
    config = json.loads(booster.save_config())["learner"]
    name = config["gradient_booster"]["name"]
    if name != "gbtree":
        raise ArtifactError(f"{what}: it is a {name} model; only gbtree models are converted")
    objective = config["objective"]["name"]
    if objective in _LABELS:
        raise ArtifactError(f"{what}: {objective} answers labels; train it with {_LABELS[objective]} for probabilities")
    best = booster.attr("best_iteration")
    if stops and best is not None:
        # after early stopping a scikit-learn wrapper predicts with the best trees, a Booster with all
        booster = booster[: int(best) + 1]
    try:
        model = treelite.frontend.from_xgboost(booster)
    except treelite.TreeliteError as error:
        raise ArtifactError(f"{what}: Treelite {treelite.__version__} cannot convert it ({error})") from error
    outputs = max(1, int(config["learner_model_param"]["num_class"]))

    def predict(rows: NDArray[Any]) -> NDArray[Any]:
        answers = booster.inplace_predict(np.ascontiguousarray(rows, np.float32), validate_features=False)
        return np.asarray(answers, np.float32).reshape(len(rows), outputs)

    names = booster.feature_names
    return Forest(
        model=model,
        features=booster.num_features(),
        names=None if names is None else tuple(names),
        outputs=outputs,
        predict=predict,
    )


def _booster(artifact: Any, what: str) -> Any:
    import xgboost

    if isinstance(artifact, xgboost.Booster):
        return artifact
    if not isinstance(artifact, xgboost.XGBModel):
        raise ArtifactError(f"{what}: a {type(artifact).__name__} is no XGBoost model; give a Booster or an XGBModel")
    try:
        return artifact.get_booster()
    except Exception as error:  # scikit-learn's NotFittedError, where scikit-learn is installed
        raise ArtifactError(f"{what}: the {type(artifact).__name__} is not fitted; call fit first") from error


XGBOOST = ForestConverter(name="XGBoost", suffixes=(".ubj", ".json"), modules=("xgboost",), convert=convert)
