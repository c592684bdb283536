"""Steps that combine what other steps made, with their references resolved: means, and the best candidates."""

from __future__ import annotations

from collections.abc import Sequence

from tristage.columns import Column
from tristage.errors import StackError
from tristage.export.lowered import Feed, LoweredStep, Source
from tristage.export.mean import Mean
from tristage.export.references import Reader, some
from tristage.export.top_k import CARRIED, MASK, SCORES, TopK
from tristage.stack import MeanStep, TopKStep

__all__ = ["MARGIN", "lower_mean", "lower_top_k"]

MARGIN = "_margin"  # how the names of columns end that hold logits beside predictions


def lower_mean(name: str, step: MeanStep, reader: Reader) -> LoweredStep:
    """Resolve a mean; raises StackError."""
    references = step.references()
    groups = [reader.many([reference]) for reference in references]
    if step.average == "margins":
        groups = [_margins(name, reference, its) for reference, its in zip(references, groups, strict=True)]
    names = [[source.column.name for source in sources] for sources in groups]
    for reference, other in zip(references, names, strict=True):
        if sorted(other) != sorted(names[0]):
            raise StackError(
                f"step {name} averages {references[0]} ({some(names[0])}) with {reference} ({some(other)})", step=name
            )
    feeds = []
    for number, sources in enumerate(groups):
        by_name = {source.column.name: source for source in sources}
        feeds.append(Feed(f"of{number}", tuple(by_name[column] for column in names[0]), "float32"))
    body = Mean(step.shares(), step.average, step.temperature, step.bias)
    made = [column.removesuffix(MARGIN) for column in names[0]] if step.average == "margins" else names[0]
    return LoweredStep(name, body, tuple(feeds), tuple(Column(column, "float32") for column in made))


def _margins(name: str, reference: str, sources: Sequence[Source]) -> list[Source]:
    """Those of a mean's columns that are margins."""
    margins = [source for source in sources if source.column.name.endswith(MARGIN)]
    if not margins:
        raise StackError(
            f"step {name} averages margins, and {reference} has none ({some([its.column.name for its in sources])}); "
            f"give a forest margins: true, or have the net answer its logits too, by the name of <target>{MARGIN}",
            step=name,
        )
    return margins


def lower_top_k(name: str, step: TopKStep, reader: Reader) -> LoweredStep:
    """Resolve a top-k; raises StackError."""
    scores = reader.many(step.top)
    count = len(scores)
    if step.k > count:
        raise StackError(f"step {name} takes the best {step.k} of {count} candidates; give a smaller k", step=name)
    sides = {"mask": step.mask, **step.carry} if step.mask else dict(step.carry)
    found = {what: reader.many(references) for what, references in sides.items()}
    for what, sources in {"top": scores, **found}.items():
        if len(sources) != count:
            raise StackError(
                f"step {name}: top is {count} columns, one for each candidate, and {what} is {len(sources)} "
                f"({some([source.column.name for source in sources])})",
                step=name,
            )
        odd = [its.column.name for its in sources if its.column.dtype == "string" or its.column.length is not None]
        if odd:
            raise StackError(f"step {name}: {what} reads {odd[0]}, which is no column of single numbers", step=name)
    feeds = [Feed(SCORES, tuple(scores), "float32")]
    if step.mask:
        feeds.append(Feed(MASK, tuple(found["mask"]), "float32"))
    carried = []
    for what in step.carry:
        floats = any(source.column.dtype.startswith("float") for source in found[what])
        carried.append((what, "float32" if floats else "int64"))
        feeds.append(Feed(CARRIED + what, tuple(found[what]), carried[-1][1]))
    body = TopK(step.k, tuple(carried), bool(step.mask))
    return LoweredStep(name, body, tuple(feeds), body.columns)
