"""Has a running Triton serve another export of its stack, while it answers.

Triton changes one model at a time, and an ensemble asks its steps by their names. So the new steps are loaded beside
those that are served, under names of their own (`ctr_trees.2`); then the ensemble is loaded again with the new names,
which Triton does in one go. A request is answered by all of the old steps or by all of the new ones.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tristage.errors import RepositoryError, ServerError
from tristage.manifest import Manifest, keeps_answers
from tristage.serving.triton import REPOSITORY_HEADER

__all__ = ["Generation", "check_same_stack", "first_generation", "switch"]

CONFIG = "config.pbtxt"
# Seconds that old steps stay after the switch: requests that Triton had read have taken hold of them long before, and a
# gateway that asks a row's steps one by one has noticed by then.
_GRACE = 10.0


@dataclass(frozen=True)
class Generation:
    """One export as it is served.

    Attributes:
        manifest: the export's.
        names: what its steps' models are called on the server.
    """

    manifest: Manifest
    names: tuple[str, ...]


def first_generation(manifest: Manifest) -> Generation:
    """What a server starts with: every model under its own name."""
    models = {Path(name).parts[0] for name in manifest.files if "/" in name} - {manifest.stack}
    return Generation(manifest, tuple(sorted(models)))


def check_same_stack(before: Manifest, after: Manifest) -> None:
    """Refuse what callers of the running server could not go on with.

    Raises:
        RepositoryError: it is another stack, for another target, its columns changed, or answers are kept.
    """
    for what, old, new in (("stack", before.stack, after.stack), ("target", before.target, after.target)):
        if old != new:
            raise RepositoryError(
                f"the repository now holds the {what} {new}, and the server serves {old}; start a server for it"
            )
    if keeps_answers(before) or keeps_answers(after):
        raise RepositoryError(
            "the stack's answers are kept for equal requests (response_cache), and Triton would go on giving those of "
            "the old export; end the server and start it on the new one"
        )
    if before.signature == after.signature:
        return
    columns = [
        {column.name: column for column in (*manifest.signature.inputs, *manifest.signature.outputs)}
        for manifest in (before, after)
    ]
    changed = sorted(name for name in {*columns[0], *columns[1]} if columns[0].get(name) != columns[1].get(name))
    what = f"columns changed ({', '.join(changed)})" if changed else "order of columns or rows of a request changed"
    raise RepositoryError(
        f"the {what}, so that callers' rows would not fit any more; end the server and start it on the new export"
    )


def switch(
    now: Generation,
    number: int,
    manifest: Manifest,
    root: Path,
    staging: Path,
    *,
    address: str,
    key: str,
    patience: float,
) -> Generation:
    """Load an export's steps, have the ensemble ask them, and unload those that nobody asks any more.

    Args:
        now: what is served.
        number: goes into the new steps' names; never used before on this server.
        manifest: the export that lies in the repository, whose files were checked.
        root: the repository.
        staging: a further repository of the server's, for models under other names than in `root`.
        address: the server's HOST:PORT for gRPC, which loads beside requests; over HTTP a load holds up connections.
        key: what loading asks for.
        patience: seconds that a model may take to load.

    Raises:
        ServerError: a model does not load; the server goes on with what it has.
    """
    from tritonclient.grpc import InferenceServerClient, InferenceServerException

    ensemble = _read_config(root, manifest.stack)
    steps = ensemble.ensemble_scheduling.step
    names = {step.model_name: f"{step.model_name}.{number}" for step in steps}
    headers = {f"triton-grpc-protocol-{REPOSITORY_HEADER}": key}
    with InferenceServerClient(address) as client:
        try:
            for model, name in names.items():
                _stage(root / model, staging / name)
                client.load_model(name, headers, client_timeout=patience)
            for step in steps:
                step.model_name = names[step.model_name]
            client.load_model(manifest.stack, headers, config=_to_json(ensemble), client_timeout=patience)
        except InferenceServerException as error:
            _unload(client, names.values(), staging, headers)
            raise ServerError(
                f"the new export does not load ({_reason(error)}); the server goes on with what it has"
            ) from error
        time.sleep(_GRACE)
        _unload(client, now.names, staging, headers)
    return Generation(manifest, tuple(names.values()))


def _stage(model: Path, staged: Path) -> None:
    """A model under another name: Triton wants its folder called so, and reads all of it again with the ensemble."""
    staged.mkdir()
    for entry in model.iterdir():
        if entry.name != CONFIG:
            (staged / entry.name).symlink_to(entry)
    config = _read_config(model.parent, model.name)
    config.name = staged.name
    (staged / CONFIG).write_text(_to_text(config), encoding="utf-8")


def _unload(client: Any, names: Iterable[str], staging: Path, headers: Mapping[str, str]) -> None:
    """Requests that these models have are answered first."""
    from tritonclient.grpc import InferenceServerException

    for name in names:
        with contextlib.suppress(InferenceServerException):  # it never loaded
            client.unload_model(name, headers)
        shutil.rmtree(staging / name, ignore_errors=True)


def _read_config(root: Path, model: str) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    path = root / model / CONFIG
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} cannot be read ({error}); export the stack again") from error


def _to_text(config: Any) -> str:
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def _to_json(config: Any) -> str:
    from google.protobuf import json_format

    return str(json_format.MessageToJson(config, preserving_proto_field_name=True, indent=None))


def _reason(error: Any) -> str:
    return " ".join(str(error.message()).partition("\n\nAt:\n")[0].split())[:500]
