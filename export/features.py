"""Tables of features: joined by NVTabular, compiled as workflows are, and kept apart, so that they can be exchanged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import Column
from tristage.errors import ArtifactError
from tristage.export.net.outputs import NetOutput, Part
from tristage.export.onnx_graph import ENGINE_DOMAIN, GraphBuilder

if TYPE_CHECKING:
    from tristage.export.place import Placement

__all__ = ["FEATURES_NODE", "IDS", "Features", "add_look_up", "by_type", "find_table", "read_table"]

FEATURES_NODE = "Features"  # the operator, of ENGINE_DOMAIN, that stands for a table
IDS = "ids"


@dataclass(frozen=True)
class Features:
    """A table, compiled.

    Attributes:
        folder: the program from ids to features, in the folder of large tables.
        ids: what the table calls its ids.
        outputs: its features.
        placement: the stack of one workflow that it is, as a model.
        ask: its ids, by their name -> what NVTabular answers, feature -> [rows].
    """

    folder: str
    ids: str
    outputs: tuple[NetOutput, ...]
    placement: Placement
    ask: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its features by their types."""
        return by_type(self.outputs)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns, in the table's order."""
        return tuple(Column(output.name, output.dtype) for output in self.outputs)

    def predict(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """What NVTabular answers for ids [rows, 1]: [rows, n] for each part."""
        answers = self.ask({self.ids: feeds[IDS]})
        return [
            np.stack([np.asarray(answers[self.outputs[at].name]).reshape(-1) for at in part.outputs], axis=1).astype(
                part.dtype, copy=False
            )
            for part in self.parts
        ]

    def lower(self, graph: GraphBuilder, feeds: Mapping[str, str], step: str) -> tuple[str, ...]:
        """The node that stands for it; the names of the tensors that it makes, one for each part."""
        call = {"features": self.folder, "makes": [output.name for output in self.outputs]}
        return add_look_up(graph, FEATURES_NODE, step, feeds[IDS], self.outputs, call)


def add_look_up(
    graph: GraphBuilder, kind: str, step: str, ids: str, features: Sequence[NetOutput], call: Mapping[str, Any]
) -> tuple[str, ...]:
    """Add the node of a table or a store; the names of the tensors of its features, one for each type."""
    made = graph.add_many(
        kind,
        ids,
        outputs=len(features),
        domain=ENGINE_DOMAIN,
        name=step,
        call=json.dumps(call),
        width=1,
        dtypes=[feature.dtype for feature in features],
    )
    return tuple(graph.concat([made[at] for at in part.outputs]) for part in by_type(features))


def by_type(features: Sequence[NetOutput]) -> tuple[Part, ...]:
    """Features of one number each by their types, which they are served as."""
    dtypes = dict.fromkeys(feature.dtype for feature in features)
    places = {dtype: tuple(at for at, its in enumerate(features) if its.dtype == dtype) for dtype in dtypes}
    return tuple(Part(dtype, dtype, its, its) for dtype, its in places.items())


def find_table(step: str, artifact: Any) -> None:
    """Check that a step's table is there.

    Raises:
        ArtifactError: there is no such file, or it is no table.
    """
    if isinstance(artifact, (str, Path)):
        if not Path(artifact).is_file():
            raise ArtifactError(
                f"step {step}: there is no file {artifact}; write the table of features there, as Parquet",
                path=Path(artifact),
            )
    elif not hasattr(artifact, "columns") and not hasattr(artifact, "column_names"):
        raise ArtifactError(
            f"step {step}: a {type(artifact).__name__} is no table; give a Parquet file, a pandas.DataFrame or an "
            "Arrow table"
        )


def read_table(step: str, artifact: Any, ids: str) -> Any:
    """Read a table: its ids and features of one number each.

    Args:
        step: the step's name.
        artifact: the Parquet file, or the table itself.
        ids: what the table calls its ids.

    Returns:
        A pandas.DataFrame, the ids first; a column of lists has become a column for each of their places.

    Raises:
        ArtifactError: it cannot be read, has no ids or no features, an id stands twice or is null, or a feature is no
            number.
    """
    import pandas as pd
    import pyarrow as pa

    find_table(step, artifact)
    path = Path(artifact) if isinstance(artifact, (str, Path)) else None
    what = f"step {step}: {path or 'its table'}"

    def refuse(why: str) -> ArtifactError:
        return ArtifactError(f"{what} {why}", path=path)

    try:
        frame = pd.read_parquet(path) if path else artifact.to_pandas() if isinstance(artifact, pa.Table) else artifact
    except (OSError, ValueError, pa.ArrowException) as error:
        raise refuse(f"cannot be read as Parquet ({error}); write the table of features so") from error
    if ids not in frame.columns:
        raise refuse(
            f"has no column {ids}; say with ids which of its columns holds the ids: {', '.join(frame.columns)}"
        )
    if frame[ids].isna().any():
        raise refuse(f"has rows without an id ({ids} is null); leave them out")
    twice = frame[ids][frame[ids].duplicated()]
    if len(twice):
        raise refuse(f"has {len(twice)} ids that stood in a row before, such as {twice.iloc[0]!r}; one row for each id")
    made = {ids: frame[ids].to_numpy()}
    for name in (name for name in frame.columns if name != ids):
        made.update(_numbers(str(name), frame[name], refuse))
    if len(made) == 1:
        raise refuse("holds no features, only ids")
    return pd.DataFrame(made)


def _numbers(name: str, values: Any, refuse: Callable[[str], ArtifactError]) -> dict[str, NDArray[Any]]:
    """A feature as it is joined: floats and whole numbers as they are, lists as a column for each place."""
    its = values.to_numpy()
    if its.dtype == object and len(its) and all(isinstance(each, (list, tuple, np.ndarray)) for each in its):
        lengths = {len(each) for each in its}
        if len(lengths) > 1:
            raise refuse(f"has lists of {min(lengths)} to {max(lengths)} numbers in {name}; make them of one length")
        wide = np.array([np.asarray(each) for each in its])
        if wide.dtype.kind not in "iuf":
            raise refuse(f"has lists in {name} that do not hold numbers")
        return {f"{name}{place}": np.ascontiguousarray(wide[:, place]) for place in range(wide.shape[1])}
    if its.dtype == bool:
        return {name: its.astype(np.int8)}
    if its.dtype.kind not in "iuf":
        raise refuse(f"has {values.dtype} in {name}; features are numbers: encode it first")
    return {name: its}
