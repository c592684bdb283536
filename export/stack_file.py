"""stack.yaml: the same stack, written down. Paths in it are relative to the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tristage.errors import StackError
from tristage.stack import (
    CandidatesStep,
    FeatureSource,
    FeaturesStep,
    ForestStep,
    ListInput,
    MeanStep,
    NetStep,
    RetrieveStep,
    Stack,
    Step,
    TopKStep,
    WorkflowStep,
)
from tristage.triton_settings import TritonSettings

__all__ = ["read_stack"]

_TOP = ("name", "targets", "golden", "inputs", "steps", "outputs", "triton")


def read_stack(path: Path) -> Stack:
    """Read a stack.yaml, and those that its steps name.

    Raises:
        StackError: a file is missing, not YAML, holds an unknown key or itself, or describes a stack that cannot be.
    """
    return _read(path, ())


def _read(path: Path, around: tuple[Path, ...]) -> Stack:
    """Read a stack.yaml that a step of another names, which a step of another names ...: `around`."""
    import yaml

    if path.resolve() in around:
        raise StackError(f"{path} is a step of itself; a step's stack is another file")
    try:
        document = _load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StackError(f"there is no file {path}; give the path of a stack.yaml") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StackError(f"{path} cannot be read as YAML: {error}") from error
    file = path.resolve()
    here = file.parent

    def stack_of(other: str) -> Stack:
        return _read(here / other, (*around, file))

    try:
        top = _mapping(document, "the file")
        _known(top, _TOP, "the file")
        return Stack(
            name=_text(_need(top, "name", "the file"), "name"),
            steps={
                str(name): _step(str(name), _mapping(step, f"step {name}"), here, stack_of)
                for name, step in _mapping(_need(top, "steps", "the file"), "steps").items()
            },
            outputs={
                str(name): _text(reference, f"output {name}")
                for name, reference in _mapping(_need(top, "outputs", "the file"), "outputs").items()
            },
            targets=_texts(top.get("targets", ()), "targets"),
            inputs={
                str(name): _list_input(str(name), _mapping(options, f"input {name}"))
                for name, options in _mapping(top.get("inputs") or {}, "inputs").items()
            },
            golden=here / _text(top["golden"], "golden") if top.get("golden") else None,
            triton=_triton(top.get("triton") or {}, "triton"),
        )
    except StackError as error:
        raise StackError(f"{path}: {error}", step=error.step) from None


def _load(text: str) -> Any:
    """YAML as plain values; a key that stands twice is an error, where YAML's own loader takes the last."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"{key} stands twice", node.start_mark)
            return super().construct_mapping(node, deep=deep)

    return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader


def _step(name: str, raw: Mapping[str, Any], here: Path, stack_of: Callable[[str], Stack]) -> Step:
    kinds = [kind for kind in _STEPS if kind in raw]
    if len(kinds) != 1:
        raise StackError(
            f"step {name} must have exactly one of the keys {', '.join(_STEPS)}; it has {', '.join(map(str, raw))}",
            step=name,
        )
    allowed, build = _STEPS[kinds[0]]
    _known(raw, (kinds[0], *allowed), f"step {name}")
    if kinds[0] == "stack":
        raw = {**raw, "stack": stack_of(_text(raw["stack"], f"stack of step {name}"))}
    return build(name, raw, here)


def _workflow(name: str, raw: Mapping[str, Any], here: Path) -> Step:
    return WorkflowStep(here / _text(raw["workflow"], f"workflow of step {name}"))


def _forest(name: str, raw: Mapping[str, Any], here: Path) -> Step:
    where = f"step {name}"
    group = raw.get("group")
    average = _text(raw.get("average", "predictions"), f"average of {where}")
    margins = raw.get("margins", False)
    if not isinstance(margins, bool):
        raise StackError(f"margins of {where} is {margins!r}; give true or false", step=name)
    try:
        return ForestStep(
            forest=here / _text(raw["forest"], f"forest of {where}"),
            reads=_texts(_need(raw, "reads", where), f"reads of {where}"),
            group=None if group is None else _text(group, f"group of {where}"),
            average=average,
            margins=margins,
        )
    except StackError as error:
        raise StackError(f"{where}: {error}", step=name) from None


def _net(name: str, raw: Mapping[str, Any], here: Path) -> Step:
    where = f"step {name}"
    reads = _mapping(_need(raw, "reads", where), f"reads of {where} (input name: columns)")
    try:
        return NetStep(
            net=here / _text(raw["net"], f"net of {where}"),
            reads={str(tensor): _texts(columns, f"reads.{tensor} of {where}") for tensor, columns in reads.items()},
            rewrites=_texts(raw["rewrites"], f"rewrites of {where}") if "rewrites" in raw else None,
            examples=here / _text(raw["examples"], f"examples of {where}") if "examples" in raw else None,
            backend=_text(raw["backend"], f"backend of {where}") if "backend" in raw else None,
            weights=_text(raw["weights"], f"weights of {where}") if "weights" in raw else None,
        )
    except StackError as error:
        raise StackError(str(error) if where in str(error) else f"{where}: {error}", step=name) from None


def _mean(name: str, raw: Mapping[str, Any], here: Path) -> Step:
    where = f"step {name}"
    weights = raw.get("weights")
    if isinstance(weights, str):
        weights = here / weights
    elif weights is not None:
        weights = _mapping(weights, f"weights of {where} (step: weight, or a JSON file that holds them)")
    numbers = {key: raw[key] for key in ("temperature", "bias") if key in raw}
    try:
        return MeanStep(
            _texts(raw["mean"], f"mean of {where}"),
            weights=weights,
            average=_text(raw.get("average", "predictions"), f"average of {where}"),
            **numbers,
        )
    except StackError as error:
        raise StackError(f"{where}: {error}", step=name) from None


def _top(name: str, raw: Mapping[str, Any], here: Path) -> Step:
    where = f"step {name}"
    carry = _mapping(raw.get("carry") or {}, f"carry of {where} (name: columns)")
    try:
        return TopKStep(
            _texts(raw["top"], f"top of {where}"),
            _need(raw, "k", where),
            {str(what): _texts(columns, f"carry.{what} of {where}") for what, columns in carry.items()},
            _texts(raw["mask"], f"mask of {where}") if "mask" in raw else None,
        )
    except StackError as error:
        raise StackError(str(error) if where in str(error) else f"{where}: {error}", step=name) from None


def _retrieve(name: str, raw: Mapping[str, Any], here: Path) -> Step:
    where = f"step {name}"
    try:
        return RetrieveStep(
            here / _text(raw["index"], f"index of {where}"),
            _texts(_need(raw, "reads", where), f"reads of {where}"),
            _need(raw, "k", where),
        )
    except StackError as error:
        raise StackError(str(error) if where in str(error) else f"{where}: {error}", step=name) from None


def _candidates(name: str, raw: Mapping[str, Any], here: Path) -> Step:
    where = f"step {name}"
    sides = {
        side: {
            str(column): _texts(references, f"{side}.{column} of {where}")
            for column, references in _mapping(given, f"{side} of {where} (raw column of its stack: columns)").items()
        }
        for side, given in (("each", _need(raw, "each", where)), ("shared", raw.get("shared") or {}))
    }
    try:
        return CandidatesStep(raw["stack"], **sides)
    except StackError as error:
        raise StackError(f"{where}: {error}", step=name) from None


def _features(name: str, raw: Mapping[str, Any], here: Path) -> Step:
    where = f"step {name}"
    features: Any = raw["features"]
    if isinstance(features, Mapping):
        _known(features, ("source", "columns", "settings"), f"features of {where}")
        columns = _mapping(_need(features, "columns", where), f"columns of {where}")
        settings = _mapping(features.get("settings") or {}, f"settings of {where}")
        try:
            features = FeatureSource(_text(_need(features, "source", where), f"source of {where}"), columns, settings)
        except StackError as error:
            raise StackError(f"{where}: {error}", step=name) from None
    else:
        features = here / _text(features, f"features of {where}")
    return FeaturesStep(
        features,
        _text(_need(raw, "key", where), f"key of {where}"),
        _text(raw["ids"], f"ids of {where}") if "ids" in raw else None,
    )


# the key that says a step's kind -> the other keys it may have, and what builds it
_STEPS: Mapping[str, tuple[tuple[str, ...], Callable[[str, Mapping[str, Any], Path], Step]]] = {
    "workflow": ((), _workflow),
    "forest": (("reads", "group", "average", "margins"), _forest),
    "net": (("reads", "rewrites", "examples", "backend", "weights"), _net),
    "mean": (("weights", "average", "temperature", "bias"), _mean),
    "top": (("k", "carry", "mask"), _top),
    "index": (("reads", "k"), _retrieve),
    "stack": (("each", "shared"), _candidates),
    "features": (("key", "ids"), _features),
}


def _triton(raw: Any, where: str) -> TritonSettings:
    given = _mapping(raw, where)
    _known(given, tuple(each.name for each in fields(TritonSettings)), where)
    steps = _mapping(given.get("steps") or {}, f"steps of {where}")
    its = {str(step): _triton(settings, f"{where}.steps.{step}") for step, settings in steps.items()}
    try:
        return TritonSettings(**{key: value for key, value in given.items() if key != "steps"}, steps=its)
    except StackError as error:
        raise StackError(f"{where}: {error}") from None


def _list_input(name: str, raw: Mapping[str, Any]) -> ListInput:
    _known(raw, ("max_length", "pad"), f"input {name}")
    length = _need(raw, "max_length", f"input {name}")
    if not isinstance(length, int) or isinstance(length, bool):
        raise StackError(f"max_length of input {name} is {length!r}; give a whole number")
    pad = raw.get("pad")
    if pad is not None and (isinstance(pad, bool) or not isinstance(pad, (int, float, str))):
        raise StackError(f"pad of input {name} is {pad!r}; give a number or a text")
    try:
        return ListInput(length, pad)
    except StackError as error:
        raise StackError(f"input {name}: {error}") from None


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise StackError(f"{what} must be a mapping of keys to values, not {type(value).__name__}")
    return value


def _known(raw: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in raw:
        if key not in allowed:
            raise StackError(f"{where} has an unknown key {key!r}; it may have {', '.join(allowed)}")


def _need(raw: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in raw:
        raise StackError(f"{where} lacks the key {key!r}")
    return raw[key]


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise StackError(f"{what} is {value!r}; give a text")
    return value


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        raise StackError(f"{what} is {value!r}; give one name or a list of names")
    return tuple(_text(item, what) for item in value)
