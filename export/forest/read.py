"""Finds a step's forests, by file pattern or in memory, and converts each with its library's converter."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tristage.errors import ArtifactError, StackError
from tristage.export.forest.catboost import CATBOOST
from tristage.export.forest.lightgbm import LIGHTGBM
from tristage.export.forest.model import Forest, ForestConverter, ForestSet, check_path
from tristage.export.forest.sklearn import SKLEARN
from tristage.export.forest.to_onnx import check_forest
from tristage.export.forest.xgboost import XGBOOST

__all__ = ["FORESTS", "find_forests", "read_forests"]

# one converter per library; others append their own
FORESTS: list[ForestConverter] = [XGBOOST, LIGHTGBM, CATBOOST, SKLEARN]

_PICKLES = (".joblib", ".pkl", ".pickle")  # a pickle may hold a model of any library
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_PLACES = ("target", "bag", "group")


def read_forests(
    step: str,
    artifact: Any,
    targets: Sequence[str],
    grouped: bool,
    *,
    average: str = "predictions",
    margins: bool = False,
    trust: bool = False,
) -> ForestSet:
    """Read and convert the forests of a step.

    Args:
        step: the step's name.
        artifact: what `ForestStep.forest` may be.
        targets: the stack's targets, which give the order of {target}.
        grouped: whether the step names a column that chooses the group.
        average: what a bag averages, "predictions" or "margins".
        margins: whether margins are answered after the predictions.
        trust: whether pickles may be read, which runs what they say.

    Raises:
        StackError: the pattern is wrong, or a file for a target or group is missing.
        ArtifactError: no file matches, or one cannot be converted.
    """
    bags: dict[tuple[str | None, str | None], list[tuple[str, Forest]]] = {}
    for where, model, places in find_forests(step, artifact, grouped=grouped, trust=trust):
        key = (places.get("group"), places.get("target"))
        bags.setdefault(key, []).append((places.get("bag", ""), _convert(model, where)))
    groups = sorted({group for group, _ in bags}, key=_natural)
    found = {target for _, target in bags}
    if found != {None}:
        unknown = sorted(str(target) for target in found if target not in targets)
        if unknown:
            raise StackError(
                f"step {step} has forests for {', '.join(unknown)}, which targets ({', '.join(targets)}) lacks",
                step=step,
            )
    if grouped != (groups != [None]):
        raise StackError(
            f"step {step} names a group column but no {{group}} in its pattern"
            if grouped
            else f"step {step} has {{group}} in its pattern but names no group column; add group: step.column",
            step=step,
        )
    try:
        return ForestSet(
            forests={
                key: tuple(forest for _, forest in sorted(bag, key=lambda item: _natural(item[0])))
                for key, bag in bags.items()
            },
            groups=tuple(groups),
            targets=(None,) if found == {None} else tuple(target for target in targets if target in found),
            average=average,
            margins=margins,
        )
    except StackError as error:
        raise StackError(f"step {step}: {error}", step=step) from None
    except ArtifactError as error:
        raise ArtifactError(f"step {step}: {error}") from None


def find_forests(
    step: str, artifact: Any, *, grouped: bool = False, trust: bool = False
) -> list[tuple[str, Any, dict[str, str]]]:
    """(what it is, model or file, its target, bag and group) of every forest of a step; opens nothing.

    Raises:
        StackError: the pattern is wrong.
        ArtifactError: no file matches, one is of no known kind, or one is a pickle and not trusted.
    """
    found = list(_members(step, artifact) if isinstance(artifact, (str, Path)) else _models(step, artifact, grouped))
    for where, model, _ in found:
        if not isinstance(model, Path):
            _converter(model, where)
            continue
        if model.suffix not in _PICKLES:
            _converter(model, where)
        elif not trust:
            raise ArtifactError(
                f"{where}: reading {model} runs whatever its pickle says; if you trust who wrote it, say so with "
                "--trust, or trust=True in Python",
                path=model,
            )
        check_path(model, where)
    return found


def _models(step: str, artifact: Any, grouped: bool) -> Iterator[tuple[str, Any, dict[str, str]]]:
    """Models in memory: one, a list of them (a bag), or either by target; where there are groups, that by group."""

    def unfold(value: Any, places: dict[str, str], levels: Sequence[str]) -> Iterator[tuple[str, Any, dict[str, str]]]:
        if isinstance(value, Mapping) and levels:
            for key, inner in value.items():
                yield from unfold(inner, {**places, levels[0]: str(key)}, levels[1:])
        elif isinstance(value, (list, tuple)):
            for number, inner in enumerate(value):
                yield from unfold(inner, {**places, "bag": str(number)}, ())
        else:
            where = ", ".join([f"step {step}", *(f"{level} {key}" for level, key in places.items())])
            yield where, Path(value) if isinstance(value, str) else value, places

    found = list(unfold(artifact, {}, ("group", "target") if grouped else ("target",)))
    if not found:
        raise StackError(f"step {step} has no forest in it; give it at least one", step=step)
    yield from found


def _members(step: str, path: str | Path) -> Iterator[tuple[str, Any, dict[str, str]]]:
    path = Path(path)
    places = _PLACEHOLDER.findall(str(path))
    wrong = [place for place in places if place not in _PLACES or places.count(place) > 1]
    if wrong:
        raise StackError(
            f"step {step}: {{{wrong[0]}}} in {path} is not one of {{target}}, {{bag}}, {{group}}, each once", step=step
        )
    if not places:
        yield f"step {step}", path, {}
        return
    root = Path(str(path).split("{", 1)[0] + "*").parent
    relative = path.relative_to(root).as_posix()
    parts = _PLACEHOLDER.split(relative)  # text, name, text, name, ..., text
    pattern = "".join(re.escape(part) if index % 2 == 0 else f"(?P<{part}>[^/]+?)" for index, part in enumerate(parts))
    wild = "".join(glob.escape(part) if index % 2 == 0 else "*" for index, part in enumerate(parts))
    files = sorted(file for file in root.glob(wild) if re.fullmatch(pattern, file.relative_to(root).as_posix()))
    if not files:
        raise ArtifactError(f"step {step}: no file matches {path}", path=path)
    for file in files:
        match = re.fullmatch(pattern, file.relative_to(root).as_posix())
        assert match is not None
        yield f"step {step}, {file.name}", file, match.groupdict()


def _convert(model: Any, what: str) -> Forest:
    if isinstance(model, Path) and model.suffix in _PICKLES:
        model = _unpickle(model, what)
    forest = _converter(model, what).convert(model, what)
    check_forest(forest, what)
    return forest


def _unpickle(path: Path, what: str) -> Any:
    import joblib

    try:
        return joblib.load(path)
    except Exception as error:  # unpickling raises whatever the classes raise
        raise ArtifactError(f"{what}: joblib {joblib.__version__} cannot read {path} ({error})", path=path) from error


def _converter(model: Any, what: str) -> ForestConverter:
    if isinstance(model, Path):
        for converter in FORESTS:
            if model.suffix in converter.suffixes:
                return converter
        kinds = [f"{'/'.join(converter.suffixes)} ({converter.name})" for converter in FORESTS if converter.suffixes]
        known = ", ".join([*kinds, f"{'/'.join(_PICKLES)} (pickles, with trust)"])
        raise ArtifactError(f"{what}: {model} is of no known kind of forest; known are {known}", path=model)
    # the class itself first: other libraries' wrappers descend from scikit-learn's classes
    for package in (cls.__module__.split(".")[0] for cls in type(model).__mro__):
        for converter in FORESTS:
            if package in converter.modules:
                return converter
    known = ", ".join(converter.name for converter in FORESTS)
    raise ArtifactError(f"{what}: a {type(model).__name__} is no forest of a known library; known are {known}")


def _natural(text: str | None) -> tuple[Any, ...]:
    """Sorts 2 before 10."""
    return (
        ()
        if text is None
        else tuple((0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text))
    )
