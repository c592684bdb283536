"""What every tree library is converted to: a Treelite model, and how the trained model names its features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tristage.errors import ArtifactError, StackError

__all__ = ["Forest", "ForestConverter", "ForestSet"]


@dataclass(frozen=True)
class Forest:
    """One converted forest.

    Attributes:
        model: the treelite.Model.
        features: how many columns it reads.
        names: the features' names, in order; None where the trained model knows none.
        outputs: columns it answers with.
        predict: the training library's own answer, for float32 rows of shape [rows, features]: [rows, outputs] float32.
    """

    model: Any
    features: int
    names: tuple[str, ...] | None
    outputs: int
    predict: Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class ForestConverter:
    """How one library's forests are recognised, read and converted.

    Attributes:
        name: the library's name.
        suffixes: of its files.
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
    """

    forests: Mapping[tuple[str | None, str | None], tuple[Forest, ...]]
    groups: tuple[str | None, ...]
    targets: tuple[str | None, ...]

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

    def all(self) -> list[Forest]:
        """Every forest, in the order of groups, targets and bags."""
        return [forest for group in self.groups for target in self.targets for forest in self.forests[group, target]]


def check_path(path: Path, what: str) -> None:
    """Raise an ArtifactError that names the file where it is missing or empty."""
    if not path.is_file():
        raise ArtifactError(f"{what}: there is no file {path}", path=path)
    if path.stat().st_size == 0:
        raise ArtifactError(f"{what}: {path} is empty; save the model again", path=path)
