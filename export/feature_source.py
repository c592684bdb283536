"""A store of features that code of the user's asks, as a node of the graph of its step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import Column
from tristage.errors import ArtifactError
from tristage.export.features import IDS, add_look_up, by_type
from tristage.export.net.outputs import NetOutput, Part
from tristage.export.onnx_graph import GraphBuilder
from tristage.serving.graph import GraphError
from tristage.serving.program_file import SourceCall
from tristage.serving.source import Source, allow
from tristage.stack import FeatureSource

__all__ = ["SOURCE_NODE", "Sourced", "open_for_export"]

SOURCE_NODE = "Source"  # the operator, of ENGINE_DOMAIN, that stands for a store


@dataclass(frozen=True)
class Sourced:
    """A store of features.

    Attributes:
        said: what the stack says of it.
        dtype: the ids' type.
        opened: the store itself, which the export asks about the golden rows as Triton does later.
    """

    said: FeatureSource
    dtype: str
    opened: Source

    @property
    def outputs(self) -> tuple[NetOutput, ...]:
        """Its features."""
        return tuple(NetOutput(name, 1, dtype) for name, dtype in self.said.columns.items())

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its features by their types."""
        return by_type(self.outputs)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns, in order."""
        return tuple(Column(name, dtype) for name, dtype in self.said.columns.items())

    def predict(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """What the store answers for ids [rows, 1]: [rows, n] for each part; raises ArtifactError where it fails."""
        try:
            answers = self.opened.run({IDS: feeds[IDS]})
        except GraphError as error:
            raise ArtifactError(str(error)) from error
        return [np.concatenate([answers[self.outputs[at].name] for at in part.outputs], axis=1) for part in self.parts]

    def lower(self, graph: GraphBuilder, feeds: Mapping[str, str], step: str) -> tuple[str, ...]:
        """The node that stands for it; the names of the tensors that it makes, one for each part."""
        call = {
            "source": self.said.source,
            "settings": dict(self.said.settings),
            "dtype": self.dtype,
            "dtypes": dict(self.said.columns),
        }
        return add_look_up(graph, SOURCE_NODE, step, feeds[IDS], self.outputs, call)


def open_for_export(step: str, said: FeatureSource, dtype: str, trust: bool) -> Sourced:
    """Open a store in this process.

    Raises:
        ArtifactError: its code is not trusted, or it cannot be opened.
    """
    if not trust:
        raise ArtifactError(
            f"step {step} asks {said.source}, and opening it runs its code; if you trust who wrote it, say so with "
            "--trust, or trust=True in Python"
        )
    allow(said.source)
    features = said.columns
    call = SourceCall(step, said.source, said.settings, IDS, dtype, {name: name for name in features}, features)
    try:
        return Sourced(said, dtype, Source.open(call))
    except GraphError as error:
        raise ArtifactError(f"step {step}: {error}") from error
