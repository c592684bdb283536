"""References of a step, or of an output, to the columns that they stand for."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

from tristage.columns import Column
from tristage.errors import StackError
from tristage.export.lowered import Answer, LoweredStep, Source, Workflow
from tristage.export.workflow import InterpretedWorkflow
from tristage.stack import Stack, split_reference

__all__ = ["Reader", "some"]

_GLOB = re.compile(r"[*?\[]")


class Reader:
    """Resolves the references of one step against the steps before it."""

    def __init__(
        self,
        name: str,
        stack: Stack,
        steps: Mapping[str, LoweredStep],
        raw: dict[str, Column],
        golden: Mapping[str, Column],
    ) -> None:
        self._name, self._stack, self._steps, self._raw, self._golden = name, stack, steps, raw, golden

    def many(self, references: Iterable[str]) -> list[Source]:
        """Every column that references stand for, each once, in order."""
        sources = [source for reference in references for source in self._expand(reference, f"step {self._name}")]
        return list(dict.fromkeys(sources))

    def one(self, reference: str, where: str) -> Source:
        """The one scalar column a reference stands for."""
        sources = self._expand(reference, where)
        if len(sources) != 1 or sources[0].column.length is not None:
            raise StackError(f"{where} needs one scalar column, but {reference!r} is {len(sources)} columns or a list")
        return sources[0]

    def answer(self, name: str, reference: str) -> Answer:
        """What an output is: the one scalar column a reference stands for, or with a glob a list of all it matches."""
        where = f"output {name}"
        step, pattern = split_reference(reference)
        if pattern is None or not _GLOB.search(pattern):
            source = self.one(reference, where)
            return Answer(step, (source,), Column(name, source.column.dtype))
        sources = self._expand(reference, where)
        lists = [source.column.name for source in sources if source.column.length is not None]
        if lists:
            raise StackError(f"{where} is {reference!r}, but {lists[0]} holds lists; a list is made of scalar columns")
        dtypes = dict.fromkeys(source.column.dtype for source in sources)
        if len(dtypes) > 1:
            raise StackError(
                f"{where} is {reference!r}, which stands for columns of {' and '.join(dtypes)} "
                f"({some([source.column.name for source in sources])}); a list holds one type: write one for each"
            )
        return Answer(step, tuple(sources), Column(name, sources[0].column.dtype, len(sources)))

    def _expand(self, reference: str, where: str) -> list[Source]:
        step, pattern = split_reference(reference)
        if step not in self._steps:
            return [self._raw_source(reference, where)]
        columns = self._steps[step].columns
        sources = [Source(step, column, position) for position, column in enumerate(columns)]
        if pattern is None:
            return sources
        matches = [source for source in sources if fnmatch.fnmatchcase(source.column.name, pattern)]
        if not matches:
            why = _unserved(self._steps[step]).get(pattern)
            if why is not None:
                raise StackError(f"{where} reads {reference}, which {why}", step=self._name or None)
            near = difflib.get_close_matches(pattern, [column.name for column in columns], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {some([c.name for c in columns])}"
            raise StackError(
                f"{where} reads {reference}, but step {step} has no such column; {hint}", step=self._name or None
            )
        return matches

    def _raw_source(self, name: str, where: str) -> Source:
        column = self._raw.get(name) or self._golden.get(name)
        if column is None:
            known = some([*self._steps, *self._raw])
            raise StackError(
                f"{where} reads {name}, which is neither a step nor a raw column of a workflow or of the golden rows; "
                f"known are {known}",
                step=self._name or None,
            )
        options = self._stack.inputs.get(name)
        if column.length is not None:
            if options is None:
                raise StackError(
                    f"raw column {name} holds lists; say how long they may be: inputs: {{{name}: {{max_length: N}}}}"
                )
            pad = column.pad if options.pad is None else options.pad
            column = Column(name, column.dtype, options.max_length, pad)
        self._raw[name] = column
        return Source(None, column)


def _unserved(step: LoweredStep) -> Mapping[str, str]:
    served = step.body.served if isinstance(step.body, Workflow) else None
    return served.unserved if isinstance(served, InterpretedWorkflow) else {}


def some(names: Sequence[str]) -> str:
    """The first of many names, for an error."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
