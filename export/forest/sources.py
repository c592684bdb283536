"""A step's forests in the repository: a recipe and the trees it names, from which every engine's file can be made.

No pickle: XGBoost's own `.ubj`, whose library can then be asked, and for the forests of other libraries Treelite's
checkpoint, which Treelite's own GTIL answers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from tristage.errors import RepositoryError
from tristage.export.forest.model import Forest, ForestSet, answers_of, postprocessor_of
from tristage.export.forest.xgboost import of_booster, read_booster
from tristage.serving.forest.postprocess import POSTPROCESS
from tristage.serving.forest.recipe import Member, Recipe

__all__ = ["read_sources", "write_sources"]


def write_sources(forests: ForestSet, folder: Path) -> str:
    """Write a step's recipe, `forest-HASH.json`, and the trees that it names; the same forests give the same bytes.

    Returns:
        The recipe's name, which tells the content of all.
    """
    recipe = Recipe(
        features=forests.all()[0].features,
        groups=forests.groups,
        targets=forests.targets,
        average=forests.average,
        margins=forests.margins,
        bags=tuple(
            tuple(
                tuple(_write(forest, folder) for forest in forests.forests[group, target]) for target in forests.targets
            )
            for group in forests.groups
        ),
    )
    text = recipe.to_json()
    name = f"forest-{_hash(text.encode())}.json"
    (folder / name).write_text(text, encoding="utf-8")
    return name


def _write(forest: Forest, folder: Path) -> Member:
    if forest.booster is None:
        content, suffix = forest.model.serialize_bytes(), "tl"
    else:
        content, suffix = bytes(forest.booster.save_raw("ubj")), "ubj"
    name = f"trees-{_hash(content)}.{suffix}"
    if not (folder / name).exists():
        (folder / name).write_bytes(content)
    _, alpha, ratio = postprocessor_of(forest)
    return Member(
        name, forest.postprocessor, alpha, ratio, forest.margin_columns, forest.outputs, forest.categories, forest.codes
    )


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def read_sources(path: Path) -> ForestSet:
    """Read what `write_sources` wrote; what answers is XGBoost itself, or for other libraries' forests Treelite.

    Args:
        path: the recipe.

    Raises:
        ForestError: the recipe cannot be read.
        ArtifactError: XGBoost cannot read a file that it wrote.
        RepositoryError: Treelite cannot.
    """
    recipe = Recipe.read(path)
    members = iter([_read(path.parent, member, recipe.features) for member in recipe.members()])
    return ForestSet(
        forests={
            (group, target): tuple(next(members) for _ in bag)
            for group, bags in zip(recipe.groups, recipe.bags, strict=True)
            for target, bag in zip(recipe.targets, bags, strict=True)
        },
        groups=recipe.groups,
        targets=recipe.targets,
        average=recipe.average,
        margins=recipe.margins,
    )


def _read(folder: Path, member: Member, features: int) -> Forest:
    import treelite

    path = folder / member.file
    if path.suffix == ".ubj":
        booster = read_booster(path, str(path))
        booster.set_param({"nthread": 1})
        return of_booster(booster, labels=member.postprocessor == "argmax", what=str(path))
    try:
        model = treelite.Model.deserialize(path)
    except treelite.TreeliteError as error:
        raise RepositoryError(
            f"{path} cannot be read by Treelite {treelite.__version__} ({error}); export the stack again"
        ) from error

    def margins(rows: NDArray[Any]) -> NDArray[Any]:
        wide = rows.astype(model.input_type)
        return np.asarray(treelite.gtil.predict(model, wide, nthread=1, pred_margin=True)).reshape(len(rows), -1)

    def predict(rows: NDArray[Any]) -> NDArray[Any]:
        return POSTPROCESS[member.postprocessor](margins(rows).astype(np.float64), member.alpha, member.ratio)

    library = f"Treelite {treelite.__version__}"
    return Forest(
        model=model,
        postprocessor=member.postprocessor,
        features=features,
        names=None,
        outputs=member.outputs,
        predict=answers_of(str(path), library, predict, member.outputs),
        margins=answers_of(str(path), library, margins, member.columns),
        categories=cast(Literal["floor", "trunc", "exact"], member.categories),
    )
