"""What every tree library is converted to: a Treelite model, and how the trained model names its features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError, StackError
from tristage.serving.forest.postprocess import POSTPROCESS

__all__ = ["Answer", "Forest", "ForestConverter", "ForestSet", "answers_of", "check_path", "postprocessor_of"]

Answer = Callable[[NDArray[Any]], NDArray[Any]]

_LABELS = ("argmax", "hinge")


@dataclass(frozen=True)
class Forest:
    """One converted forest.

    Features travel as float32: a library that compares in float64 is asked with float32 values.

    Attributes:
        model: the treelite.Model; its header says how trees sum up to margins, [rows, margins].
        postprocessor: how margins become answers: one of `tristage.export.forest.postprocess.POSTPROCESSORS`.
        features: how many columns it reads.
        names: the features' names, in order; None where the trained model knows none.
        outputs: columns it answers with.
        predict: the training library's own answer, for float32 rows of shape [rows, features]: [rows, outputs] float32.
        margins: the training library's own margins, alike: [rows, `margin_columns`]; None where it has none, as in a
            random forest, which averages its trees' answers.
        categories: how a number becomes the category that a categorical split looks for: "floor" of what is not
            negative (XGBoost), "trunc" towards zero (LightGBM), or "exact", so that a fraction is no category.
        booster: the xgboost.Booster that answers, with no tree that doesn't; None for another library.
        codes: where it was trained on a DataFrame's categories: feature -> their values, in the order of the booster's
            codes.
    """

    model: Any
    postprocessor: str
    features: int
    names: tuple[str, ...] | None
    outputs: int
    predict: Answer
    margins: Answer | None
    categories: Literal["floor", "trunc", "exact"] = "exact"
    booster: Any = None
    codes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def margin_columns(self) -> int:
        """Sums that the trees make for a row: one for each target and class."""
        return int(np.sum(self.model.get_header_accessor().get_field("num_class")))

    def feature(self, number: int) -> str:
        """What a feature is called in messages."""
        return f"feature {number}" if self.names is None else f"feature {self.names[number]}"


@dataclass(frozen=True)
class ForestConverter:
    """How one library's forests are recognised, read and converted.

    Attributes:
        name: the library's name.
        suffixes: of its files; none where it writes none of its own.
        modules: top-level packages of its model classes.
        convert: (path or model, what it is called in messages) -> Forest.
    """

    name: str
    suffixes: tuple[str, ...]
    modules: tuple[str, ...]
    convert: Callable[[Any, str], Forest]


@dataclass(frozen=True)
class ForestSet:
    """The forests of one step.

    Attributes:
        forests: (group, target) -> the bag that answers for it; group and target are None where there is only one.
        groups: values of the group column, in order; (None,) without groups.
        targets: names of the columns answered, in order; (None,) for one forest that answers them all.
        average: what a bag averages: its forests' predictions, or their margins, which are then postprocessed once.
        margins: whether the bags' mean margins are answered too, after the predictions.
    """

    forests: Mapping[tuple[str | None, str | None], tuple[Forest, ...]]
    groups: tuple[str | None, ...]
    targets: tuple[str | None, ...]
    average: str = "predictions"
    margins: bool = False

    def __post_init__(self) -> None:
        missing = [
            f"{target or ''} {f'of group {group}' if group is not None else ''}".strip()
            for group in self.groups
            for target in self.targets
            if (group, target) not in self.forests
        ]
        if missing:
            raise StackError(f"there is no forest for {', '.join(missing)}; every group needs one for every target")
        shapes = {(forest.features, forest.names, forest.outputs) for forest in self.all()}
        if len(shapes) > 1:
            raise ArtifactError(
                "the forests of one step must read the same features and have as many outputs; these differ: "
                + "; ".join(
                    f"{features} features ({', '.join(names or ('unnamed',))}), {outputs} outputs"
                    for features, names, outputs in sorted(shapes, key=str)
                )
            )
        if self.targets != (None,) and self.all()[0].outputs != 1:
            raise StackError(
                f"each of its forests has {self.all()[0].outputs} outputs, but a forest for one {{target}} has one"
            )
        self._check_averages()

    def _check_averages(self) -> None:
        bagged = any(len(bag) > 1 for bag in self.forests.values())
        if (self.margins or self.average == "margins") and any(forest.margins is None for forest in self.all()):
            raise StackError("its forests average their trees' answers and have no margins; ask for predictions")
        if self.margins and len({forest.margin_columns for forest in self.all()}) > 1:
            raise ArtifactError("its forests have unequal numbers of margins; ask for predictions")
        if bagged and self.average == "predictions" and any(f.postprocessor in _LABELS for f in self.all()):
            raise StackError("its forests answer labels, which have no mean; add average: margins")
        if self.average == "margins":
            for bag in self.forests.values():
                if len({postprocessor_of(forest) for forest in bag}) > 1:
                    raise ArtifactError(
                        "forests whose margins are averaged must make predictions of them in the same way; these "
                        f"differ: {', '.join(sorted({forest.postprocessor for forest in bag}))}"
                    )

    @property
    def outputs(self) -> int:
        """Columns of predictions."""
        return len(self.targets) if self.targets != (None,) else self.all()[0].outputs

    @property
    def width(self) -> int:
        """Columns in all: the predictions, then the margins where they are asked for."""
        if not self.margins:
            return self.outputs
        return self.outputs + len(self.targets) * self.all()[0].margin_columns

    def all(self) -> list[Forest]:
        """Every forest, in the order of groups, targets and bags."""
        return [forest for group in self.groups for target in self.targets for forest in self.forests[group, target]]

    def answer(self, rows: NDArray[Any], group: str | None) -> NDArray[np.float32]:
        """What the training libraries answer for rows of one group, [rows, width]."""
        answers, margins = [], []
        for bag in (self.forests[group, target] for target in self.targets):
            if self.margins or self.average == "margins":
                mean = np.mean([forest.margins(rows) for forest in bag if forest.margins], axis=0)
                margins.append(mean)
            if self.average == "margins" and len(bag) > 1:
                name, *parameters = postprocessor_of(bag[0])
                answers.append(POSTPROCESS[name](mean.astype(np.float64), *parameters))
            else:
                answers.append(np.mean([forest.predict(rows) for forest in bag], axis=0))
        return np.concatenate([*answers, *(margins if self.margins else [])], axis=1, dtype=np.float32)


def postprocessor_of(forest: Forest) -> tuple[str, float, float]:
    """A forest's postprocessor and its parameters: (name, sigmoid's alpha, isolation ratio's c)."""
    header = forest.model.get_header_accessor()
    return (
        forest.postprocessor,
        float(header.get_field("sigmoid_alpha")[0]),
        float(header.get_field("ratio_c")[0]),
    )


def answers_of(what: str, library: str, ask: Answer, columns: int) -> Answer:
    """A library's predict function as `Forest` wants it: any number of rows in, [rows, columns] float32 out.

    Args:
        what: what the model is called in messages.
        library: the library's name.
        ask: the library's function for at least one row, float32 and contiguous.
        columns: columns it answers with.

    The function raises an ArtifactError where the library refuses the rows.
    """

    def predict(rows: NDArray[Any]) -> NDArray[Any]:
        if len(rows) == 0:
            return np.empty((0, columns), np.float32)
        try:
            answers = ask(np.ascontiguousarray(rows, np.float32))
        except Exception as error:  # every library has its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ArtifactError(f"{what}: {library} refuses to answer for these rows ({reason})") from error
        return np.asarray(answers, np.float32).reshape(len(rows), columns)

    return predict


def check_path(path: Path, what: str) -> None:
    """Raise an ArtifactError that names the file where it is missing or empty."""
    if not path.is_file():
        raise ArtifactError(f"{what}: there is no file {path}", path=path)
    if path.stat().st_size == 0:
        raise ArtifactError(f"{what}: {path} is empty; save the model again", path=path)
