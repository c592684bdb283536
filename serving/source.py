"""A store of features, asked by code of the user's with every request; see `tristage.stack.FeatureSource`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import DTYPES
from tristage.serving.graph import GraphError, Tensor
from tristage.serving.program_file import SourceCall
from tristage.serving.workflow_file import TRUST

__all__ = ["Ask", "Source", "allow", "open_source"]

Ask = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]
_allowed: set[str] = set()


def allow(source: str) -> None:
    """Let this process import and call a source: its user has said that it is trusted."""
    _allowed.add(source)


def open_source(source: str, settings: Mapping[str, Any]) -> Ask:
    """Import a source's function and call it.

    Raises:
        GraphError: it is not trusted, cannot be imported, or fails.
    """
    if source not in _allowed and os.environ.get(TRUST) != "1":
        raise GraphError(
            f"the source {source} is code that the repository names, and opening it runs it: tristage serve --trust "
            "allows that"
        )
    module, _, function = source.partition(":")
    try:
        made: Ask = getattr(importlib.import_module(module), function)(**settings)
    except Exception as error:  # the user's code may raise anything
        raise GraphError(
            f"the source {source} cannot be opened ({error!r}); it has to be importable where the models run, as with "
            "PYTHONPATH=."
        ) from error
    return made


@dataclass(frozen=True)
class Source:
    """An opened source; evaluated as a Graph is.

    Attributes:
        ask: ids [rows] -> feature -> [rows].
        call: how its tensors are called.
    """

    ask: Ask
    call: SourceCall

    @classmethod
    def open(cls, call: SourceCall) -> Source:
        """Open what a call names; raises GraphError."""
        return cls(open_source(call.source, call.settings), call)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The ids."""
        return (_tensor(self.call.reads, self.call.dtype),)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The features."""
        return tuple(_tensor(outer, self.call.dtypes[name]) for name, outer in self.call.makes.items())

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer rows.

        Raises:
            GraphError: the source failed, or answered something else than it was said to.
        """
        ids = tensors[self.call.reads].reshape(-1)
        try:
            found = self.ask(ids)
        except Exception as error:  # the user's code may raise anything
            raise GraphError(f"the source of step {self.call.step} failed: {type(error).__name__}: {error}") from error
        return {outer: self._column(name, found, len(ids)) for name, outer in self.call.makes.items()}

    def _column(self, name: str, found: Mapping[str, NDArray[Any]], rows: int) -> NDArray[Any]:
        if name not in found:
            raise GraphError(f"the source of step {self.call.step} did not answer {name}")
        try:
            return np.asarray(found[name]).astype(self.call.dtypes[name], casting="same_kind").reshape(rows, 1)
        except (TypeError, ValueError) as error:
            raise GraphError(
                f"the source of step {self.call.step} answered {name} as something else than {self.call.dtypes[name]} "
                f"[{rows}]: {error}"
            ) from error


def _tensor(name: str, dtype: str) -> Tensor:
    numpy, triton = DTYPES[dtype]
    return Tensor(name, "TYPE_STRING" if triton == "BYTES" else f"TYPE_{triton}", np.dtype(numpy), 1)
