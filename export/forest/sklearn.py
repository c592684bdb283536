"""scikit-learn: fitted forests, in memory or in a .joblib or .pkl file that the user trusts.

A classifier answers probabilities: of its second class where it has two (for each target where it has several), else of
every class. A regressor answers its predictions, an IsolationForest the anomaly score of the paper, -score_samples.
scikit-learn's thresholds are float64; it is asked with float32 values, which is what features travel as.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.forest.model import Answer, Forest, ForestConverter, answers_of
from tristage.export.forest.recode import check_values, send_unknown_with_missing

__all__ = ["SKLEARN"]

# a Treelite model, how to ask for answers, and for margins where there are any
_Read = tuple[Any, Answer, Answer | None]

# what Treelite reads of a tree, apart from its leaves
_TREE = (
    "node_count",
    "children_left",
    "children_right",
    "feature",
    "threshold",
    "missing_go_to_left",
    "n_node_samples",
    "weighted_n_node_samples",
    "impurity",
)


def convert(artifact: Any, what: str) -> Forest:
    """Convert a scikit-learn forest.

    Raises:
        ArtifactError: the model is not fitted, is no forest, was trained on one class, or has several targets of
            several classes, an initial estimator of its own, or categories that are no whole numbers.
    """
    import sklearn
    from sklearn.utils.validation import check_is_fitted

    kind = type(artifact).__name__
    read = next((_READERS[cls.__name__] for cls in type(artifact).__mro__ if cls.__name__ in _READERS), None)
    if read is None:
        raise ArtifactError(f"{what}: a {kind} is not converted; of scikit-learn's models {', '.join(_READERS)} are")
    try:
        check_is_fitted(artifact)
    except sklearn.exceptions.NotFittedError:
        raise ArtifactError(f"{what}: the {kind} is not fitted; call fit first") from None
    model, ask, margins = read(artifact, what)
    names = getattr(artifact, "feature_names_in_", None)
    outputs = int(np.sum(model.get_header_accessor().get_field("num_class")))
    library = f"scikit-learn {sklearn.__version__}"
    return Forest(
        model=model,
        postprocessor=model.get_header_accessor().get_field("postprocessor"),
        features=int(artifact.n_features_in_),
        names=None if names is None else tuple(map(str, names)),
        outputs=outputs,
        predict=answers_of(what, library, _quietly(ask), outputs),
        margins=None if margins is None else answers_of(what, library, _quietly(margins), outputs),
    )


def _averaging_classifier(forest: Any, what: str) -> _Read:
    import treelite.sklearn

    sizes = np.atleast_1d(forest.n_classes_)
    if (sizes == 1).any():
        raise ArtifactError(f"{what}: the {type(forest).__name__} was trained on one class alone")
    if (sizes == 2).all():
        return _binary(forest)
    if len(sizes) > 1:
        raise ArtifactError(
            f"{what}: the {type(forest).__name__} has several targets of several classes; train one for each target"
        )
    return treelite.sklearn.import_model(_of_its_trees(forest)), forest.predict_proba, None


def _binary(forest: Any) -> _Read:
    """A forest of two classes is a regression on the probability of the second."""
    import treelite.sklearn
    from sklearn.ensemble import RandomForestRegressor

    regression = RandomForestRegressor(n_estimators=len(forest.estimators_))
    regression.n_features_in_, regression.n_outputs_ = forest.n_features_in_, forest.n_outputs_
    regression.estimators_ = [
        SimpleNamespace(
            tree_=SimpleNamespace(
                **{name: getattr(estimator.tree_, name) for name in _TREE},
                value=np.ascontiguousarray(estimator.tree_.value[:, :, 1:]),
            )
        )
        for estimator in forest.estimators_
    ]

    def ask(rows: NDArray[Any]) -> NDArray[Any]:
        answers = forest.predict_proba(rows)
        return np.stack([target[:, 1] for target in (answers if forest.n_outputs_ > 1 else [answers])], axis=1)

    return treelite.sklearn.import_model(regression), ask, None


def _averaging_regressor(forest: Any, what: str) -> _Read:
    import treelite.sklearn

    return treelite.sklearn.import_model(_of_its_trees(forest)), forest.predict, None


def _isolation(forest: Any, what: str) -> _Read:
    import treelite.sklearn

    return treelite.sklearn.import_model(_of_its_trees(forest)), lambda rows: -forest.score_samples(rows), None


def _boosting(forest: Any, what: str) -> _Read:
    import treelite.sklearn

    try:
        model = treelite.sklearn.import_model(_of_its_trees(forest))
    except NotImplementedError:
        raise ArtifactError(
            f"{what}: the {type(forest).__name__} starts from an estimator of its own ({forest.init}); train it "
            "without init"
        ) from None
    if not hasattr(forest, "classes_"):
        return model, forest.predict, forest.predict
    if forest.loss == "exponential":
        model.get_header_accessor().set_field("sigmoid_alpha", np.array([2], np.float32))
    return model, _probabilities(forest), forest.decision_function


def _histograms(forest: Any, what: str) -> _Read:
    import treelite.sklearn

    names = getattr(forest, "feature_names_in_", np.arange(forest.n_features_in_))
    categories: dict[int, list[Any]] = {}
    if forest.is_categorical_ is not None:
        encoder = forest._preprocessor.named_transformers_["encoder"]
        features = np.flatnonzero(forest.is_categorical_)
        categories = {
            int(feature): [value for value in values.tolist() if value == value]  # without NaN
            for feature, values in zip(features, encoder.categories_, strict=True)
        }
        check_values(categories, list(map(str, names)), what)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="invalid value encountered in cast")  # of NaN, which is no category
        model = treelite.sklearn.import_model(forest)
    send_unknown_with_missing(model, categories)
    if hasattr(forest, "classes_"):
        return model, _probabilities(forest), forest.decision_function
    logarithmic = forest.loss in ("poisson", "gamma")
    return model, forest.predict, (lambda rows: np.log(forest.predict(rows))) if logarithmic else forest.predict


def _probabilities(forest: Any) -> Answer:
    def ask(rows: NDArray[Any]) -> Any:
        answers = forest.predict_proba(rows)
        return answers[:, 1] if answers.shape[1] == 2 else answers

    return ask


def _of_its_trees(forest: Any) -> Any:
    """The forest, asked for no more trees than it has: early stopping, or set_params after fit, leave fewer."""
    same = copy.copy(forest)
    same.n_estimators = len(forest.estimators_)
    return same


def _quietly(ask: Answer) -> Answer:
    """Without the warning that an array has no feature names: they are checked against the columns it is fed."""

    def asked(rows: NDArray[Any]) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            return ask(rows)

    return asked


# class -> what reads it
_READERS: Mapping[str, Callable[[Any, str], _Read]] = {
    "RandomForestClassifier": _averaging_classifier,
    "RandomForestRegressor": _averaging_regressor,
    "ExtraTreesClassifier": _averaging_classifier,
    "ExtraTreesRegressor": _averaging_regressor,
    "GradientBoostingClassifier": _boosting,
    "GradientBoostingRegressor": _boosting,
    "HistGradientBoostingClassifier": _histograms,
    "HistGradientBoostingRegressor": _histograms,
    "IsolationForest": _isolation,
}

SKLEARN = ForestConverter(name="scikit-learn", suffixes=(), modules=("sklearn",), convert=convert)
