"""`tristage inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tristage.export.tuning.cli import engines_table, untuned_table
from tristage.terminal import console, out

if TYPE_CHECKING:
    from tristage.export.device_parts import DevicePart
    from tristage.export.size.work import Sizes
    from tristage.export.tensors import Tensor
    from tristage.manifest import Manifest

__all__ = ["inspect"]


def inspect(
    repository: Annotated[Path, typer.Argument(help="The model repository.")] = Path("model_repository"),
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what a model repository holds: columns, steps, the work of a row, versions, and who answers its forests.

    The work of a row is counted from the repository's own files: trees that a row meets and comparisons in them,
    multiply-accumulates of nets as they were trained and as they are served, look-ups, and the size of their tables.
    How Triton runs each model is said with the reason, and where each tensor between them lies.
    """
    from tristage.export.size.table import sizes_table
    from tristage.export.tensors import tensors_of
    from tristage.manifest import MANIFEST, read_manifest
    from tristage.serving.program_file import read_calls

    manifest = read_manifest(repository)
    sizes = _sizes(repository, manifest)
    tensors = tensors_of(repository, manifest.stack)
    parts = _device_parts(repository, manifest)
    if as_json:
        document = json.loads((repository / MANIFEST).read_text(encoding="utf-8"))
        counted = {"sizes": None if sizes is None else sizes.document(), "tensors": [asdict(each) for each in tensors]}
        counted["parts"] = [asdict(each) for each in parts]
        typer.echo(json.dumps(document | counted, indent=1))
        return
    out.print(_models(repository, manifest))
    out.print(_tensors(tensors))
    if parts:
        out.print(_parts(parts))
    if manifest.choices:
        out.print(_choices(manifest))
    if sizes is not None:
        out.print(sizes_table(sizes))
    calls = read_calls(repository, dict.fromkeys(manifest.models.values()))
    if manifest.tuned is not None:
        out.print(engines_table(manifest.tuned))
    elif calls:
        out.print(untuned_table(calls, repository))
    out.print(_columns(manifest))
    if manifest.rewrites:
        out.print(_rewrites(manifest))
    if manifest.weights is not None:
        weights = Table("step", "weights", "MB", "largest difference", "left as trained", title="narrow weights")
        for step, its in manifest.weights.steps.items():
            saved = f"{(its.after - its.before) / 1e6:+,.1f}"
            weights.add_row(step, its.format, saved, f"{its.difference:.1e}", "\n".join(its.left))
        out.print(weights)
    out.print(
        "\n".join((*manifest.notes, ", ".join(f"{name} {version}" for name, version in manifest.versions.items())))
    )


def _models(repository: Path, manifest: Manifest) -> Table:
    from tristage.export.config import devices, read_configs

    title = f"{manifest.stack}: {manifest.target}, {manifest.layout}"
    table = Table("step", "Triton model", "backend", "device", "MB", title=title)
    for model, config in read_configs(repository, manifest.stack):
        size = sum(path.stat().st_size for path in (repository / model).rglob("*") if path.is_file())
        steps = [step for step, its in manifest.models.items() if its == model]
        table.add_row(", ".join(steps), model, config.backend, devices(config), f"{size / 1e6:.1f}")
    return table


def _tensors(tensors: list[Tensor]) -> Table:
    """Where tensors lie; columns of the request that go the same way are one line."""
    table = Table("tensor", "type", "made by", "lies on", "read by", "copied for", title="tensors")
    ways: dict[tuple[str, str, str, str, str], list[Tensor]] = {}
    for each in tensors:
        type_ = each.dtype if each.made_by == "request" else f"{each.dtype} x {each.width}"
        readers = [*each.read_by, *(["the answer"] if each.answer else [])]
        copies = [*each.copied_by, *(["the answer"] if each.answer and each.device != "CPU" else [])]
        way = (type_, each.made_by, each.device, ", ".join(readers), ", ".join(copies))
        ways.setdefault(way, []).append(each)
    for way, its in ways.items():
        table.add_row(its[0].name if len(its) == 1 else f"{len(its)}, such as {its[0].name}", *way)
    return table


def _device_parts(repository: Path, manifest: Manifest) -> list[DevicePart]:
    """Where parts are computed; none, with a note, where torch is not installed."""
    from tristage.export.device_parts import device_parts

    try:
        return device_parts(repository, manifest.stack)
    except ModuleNotFoundError as error:
        console.print(f"[yellow]note:[/] where parts are computed is not shown: {error.name} is not installed")
        return []


def _parts(parts: list[DevicePart]) -> Table:
    """Parts that follow each other on one device, for one reason, are one line."""
    table = Table("computed on", "parts", "why", title="a request's way, in order")
    for (device, why), its in groupby(parts, lambda part: (part.device, part.why)):
        names = [part.name for part in its]
        table.add_row(device, ", ".join(dict.fromkeys(names)), why)
    return table


def _choices(manifest: Manifest) -> Table:
    """How Triton runs the models; models of which the same is said, for the same reason, are one line."""
    table = Table("setting", "value", "Triton models", "why", title="how Triton runs them")
    groups: dict[tuple[str, str, str], list[str]] = {}
    for model, choices in manifest.choices.items():
        for choice in choices:
            groups.setdefault((choice.setting, choice.value, choice.why), []).append(model)
    models = [model for model in manifest.choices if model != manifest.stack]
    order = list(dict.fromkeys(setting for setting, _, _ in groups))
    for (setting, value, why), its in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        table.add_row(setting, value, "all" if len(models) > 1 and its == models else ", ".join(its), why)
    return table


def _columns(manifest: Manifest) -> Table:
    columns = Table("column", "type", "", title=f"a row, at most {manifest.signature.max_batch} in a request")
    for column in manifest.signature.inputs:
        kind = column.dtype if column.length is None else f"list of {column.dtype}"
        note = (
            "may be null"
            if column.nullable
            else ""
            if column.length is None
            else f"at most {column.length}, pad {column.pad!r}"
        )
        columns.add_row(column.name, kind, note)
    for column in manifest.signature.outputs:
        columns.add_row(column.name, column.dtype, "[bold]answer[/]")
    return columns


def _rewrites(manifest: Manifest) -> Table:
    rewrites = Table("step", "rewrite", "what was found", "multiplications a row", "MB", title="exact rewrites")
    for step, found in manifest.rewrites.items():
        for each in found:
            where = each["where"] if each["done"] else f"{each['where']}; left as it is: {each['why']}"
            macs = f"{-each['macs']:+,}" if each["macs"] else ""
            rewrites.add_row(
                step, each["rewrite"], where, macs, f"{each['bytes'] / 1e6:+,.1f}" if each["bytes"] else ""
            )
    return rewrites


def _sizes(repository: Path, manifest: Manifest) -> Sizes | None:
    """The work of a row; None, with a note, where what reads graphs and trees is not installed."""
    try:
        from tristage.export.size.repository import sizes_of

        return sizes_of(repository, manifest)
    except ModuleNotFoundError as error:
        console.print(
            f"[yellow]note:[/] the work of a row is not counted: {error.name} is not installed "
            "(pip install 'tristage\\[export]')",
            soft_wrap=True,
        )
        return None
