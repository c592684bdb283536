"""A graph of Merlin Systems becomes a stack: operators become steps, and each of Merlin's columns a reference."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from tristage.errors import StackError
from tristage.export.merlin.folder import open_ensemble
from tristage.export.merlin.models import forest_of, net_of, probabilities_of, workflow_of
from tristage.export.net.outputs import column_names
from tristage.stack import ForestStep, ListInput, NetStep, Stack, Step, WorkflowStep

__all__ = ["MerlinNote", "read_merlin"]

# one of Merlin's columns, by its name -> the stack's columns that make it, side by side
Columns = Mapping[str, tuple[str, ...]]

# operators that only choose, name or describe columns
_PASS_ON = ("SelectionOp", "ConcatColumns", "SubsetColumns", "SubtractionOp", "GroupingOp", "Rename")
_DESCRIBE = ("AddMetadata", "AddTags", "AddProperties", "TagAs")

# operators that are no step -> what to do instead
_INSTEAD = {
    "QueryFaiss": "it makes many rows of one; ask the index before the request, and send a row for each candidate",
    "QueryFeast": "fetch the features before the request, and send them as columns",
    "UnrollFeatures": "send a row for each candidate, with the user's columns repeated",
    "FilterCandidates": "leave the candidates out of the request",
    "SoftmaxSampling": "its draw is random; order the answers where they are received",
    "PredictImplicit": "its factors have no converter; score them before the request, and send the scores as a column",
    "UDF": "put the function into the NVTabular workflow, as a LambdaOp",
    "LambdaOp": "put it into the NVTabular workflow",
}


class MerlinNote(UserWarning):
    """Something of a Merlin graph is carried otherwise than it stands there."""


def read_merlin(
    graph: Any,
    *,
    name: str | None = None,
    inputs: Mapping[str, ListInput] | None = None,
    golden: Path | str | None = None,
    trust: bool = False,
) -> Stack:
    """Read a Merlin Systems graph as a stack; `Stack.from_merlin` says the rest.

    Raises:
        ArtifactError: a model cannot be read, or the folder is not trusted.
        StackError: an operator cannot be carried; the message says which, and what to do instead.
    """
    repository = None
    if isinstance(graph, (str, Path)):
        repository = Path(graph)
        graph, model = open_ensemble(repository, trust)
        name = name or re.sub(r"\W", "_", model, flags=re.ASCII)
    output = _output_node(graph)
    reader = _Reader(output, repository, inputs or {})
    columns = reader.columns(output)
    outputs = reader.outputs(columns)
    return Stack(
        name=name or "executor_model",  # as Merlin Systems calls it, so that clients ask for the same model
        steps=reader.used(outputs.values()),
        outputs=outputs,
        inputs=dict(inputs or {}),
        golden=golden,
    )


def _output_node(graph: Any) -> Any:
    """The last node of a graph of known operators, with the schemas that Merlin's Ensemble gives every node."""
    from merlin.dag import Graph, Node, postorder_iter_nodes
    from merlin.schema import Schema

    node = graph
    if not isinstance(node, Node):  # an Ensemble, or its Graph
        node = getattr(getattr(graph, "graph", graph), "output_node", None)
    if not isinstance(node, Node):
        raise StackError(
            f"a {type(graph).__name__} is no Merlin Systems graph; give an Ensemble, its last node (columns >> "
            "TransformWorkflow(workflow) >> PredictForest(...)), or the folder that Ensemble.export wrote"
        )
    nodes = list(postorder_iter_nodes(node))
    for kind in map(_kind, nodes):
        if kind not in _KINDS and kind not in _PASS_ON and not kind.startswith(_DESCRIBE):
            instead = _INSTEAD.get(kind, "do what it does before the request or after it, or in the NVTabular workflow")
            raise StackError(f"Merlin's operator {kind} cannot be carried over: {instead}")
    if node.output_schema is None:
        raw = Schema()
        for each in nodes:
            if not any(parent.parents for parent in each.parents):
                raw += getattr(each.op, "input_schema", None) or Schema()
        chosen = [name for each in nodes if not each.parents and each.selector for name in each.selector.names]
        raw += Schema(
            [name for name in chosen if name not in raw.column_names]
        )  # nobody reads them, nor asks their type
        try:
            Graph(node).construct_schema(raw)
        except ValueError as error:
            raise StackError(f"Merlin itself refuses the graph ({error}); try Ensemble(graph, schema)") from error
    return node


class _Reader:
    """Walks the graph once, from its output to its columns."""

    def __init__(self, output: Any, repository: Path | None, lists: Container[str]) -> None:
        from merlin.dag import postorder_iter_nodes

        self._repository, self._lists = repository, lists
        self._steps: dict[str, Step] = {}
        self._done: dict[int, Columns] = {}
        nodes = list(postorder_iter_nodes(output))
        self._raw = {column for node in nodes if not node.parents for column in node.input_schema.column_names}
        self._kinds = [_KINDS[kind][0] for kind in map(_kind, nodes) if kind in _KINDS]

    def columns(self, node: Any) -> Columns:
        """What leaves a node; where two columns have one name the later one stays, as Merlin's executor does it."""
        if id(node) in self._done:
            return self._done[id(node)]
        given: dict[str, tuple[str, ...]] = {}
        for parent in node.parents_with_dependencies:
            given.update(self.columns(parent))
        if not node.parents:
            given.update({column: (column,) for column in node.input_schema.column_names})
        kind = _kind(node)
        if kind in _KINDS:
            made = _KINDS[kind][1](self, node.op, given)
        elif kind == "Rename":
            mapping = node.op.column_mapping(node.input_columns.resolve(node.input_schema))
            made = {new: given[old] for new, (old,) in mapping.items()}
        else:
            made = {column: given[column] for column in node.output_schema.column_names}
        self._done[id(node)] = made
        return made

    def outputs(self, columns: Columns) -> dict[str, str]:
        """The stack's outputs, named as Merlin names them where that is a name and no raw column has it."""
        outputs: dict[str, str] = {}
        for column, references in columns.items():
            for at, reference in enumerate(references):
                step, dot, _ = reference.partition(".")
                if not dot:
                    _note(f"the graph answers raw column {reference} as it came; it is left out")
                    continue
                name = re.sub(r"\W", "_", column, flags=re.ASCII)
                if name in self._raw or not name[0].isalpha():
                    name = f"{step}_{name}"
                if len(references) > 1:
                    name = f"{name}_{at}"
                if name != column and len(references) == 1:
                    _note(f"output {column} is called {name}")
                if name in outputs:
                    raise StackError(f"two of the graph's outputs would be called {name}; rename column {column}")
                outputs[name] = reference
        return outputs

    def used(self, references: Iterable[str]) -> dict[str, Step]:
        """The steps that outputs hang on."""
        used: set[str] = set()
        for name, step in reversed(self._steps.items()):
            if name in used or any(reference.startswith(f"{name}.") for reference in references):
                used |= {name, *(reference.partition(".")[0] for reference in step.references())}
        for name in self._steps:
            if name not in used:
                _note(f"{name} is left out: a later operator answers a column of the same name, which Merlin keeps")
        return {name: step for name, step in self._steps.items() if name in used}

    def workflow(self, op: Any, given: Columns) -> Columns:
        """TransformWorkflow: raw columns in, features out."""
        workflow, source = workflow_of(op, self._repository)
        for column in workflow.input_schema:
            (reference, *_) = given.get(column.name, (column.name,))
            if reference != column.name:
                raise StackError(
                    f"a TransformWorkflow reads {column.name}, which {reference.partition('.')[0]} makes; a workflow "
                    "reads raw columns only: make one workflow of the two"
                )
            if column.is_list and column.name not in self._lists:
                raise StackError(
                    f"raw column {column.name} holds lists; say how long they may be: --list-length {column.name}=N, "
                    f'or inputs={{"{column.name}": ListInput(N)}} in Python'
                )
        shared = [name for name, step in self._steps.items() if getattr(step, "workflow", None) is source]
        name = shared[0] if shared else self._add("workflow", WorkflowStep(source))
        return {column: (f"{name}.{column}",) for column in workflow.output_schema.column_names}

    def forest(self, op: Any, given: Columns) -> Columns:
        """PredictForest: every column there is, by position."""
        names = [column for column, references in given.items() for _ in references]
        reads = [reference for references in given.values() for reference in references]
        forest = forest_of(op, self._repository)
        trained = forest.trained
        if trained is not None and list(trained) != names and sorted(trained) == sorted(names):
            reads = [reads[names.index(column)] for column in trained]
            _note(
                f"a forest was trained on {', '.join(trained)}, and Merlin hands it {', '.join(names)} by position; "
                "it is given its columns as it was trained, so it answers otherwise than Merlin does"
            )
        answers = probabilities_of(op, forest)
        name = self._add("forest", ForestStep(forest.model, tuple(reads)))
        if answers == 2:
            _note(f"{name} answers the probability of class 1 alone; Merlin answers that of class 0 beside it")
        return {"output__0": _answers(name, 1 if answers == 2 else answers)}

    def net(self, op: Any, given: Columns) -> Columns:
        """PredictTensorflow and PredictPyTorch: columns by name."""
        net, outputs = net_of(op, self._repository)
        missing = [column for column in op.input_schema.column_names if column not in given]
        if missing:
            raise StackError(
                f"a net reads {missing[0]}, which the operators before it do not make; they make {', '.join(given)}"
            )
        name = self._add("net", NetStep(net, {column: given[column] for column in op.input_schema.column_names}))
        answers = iter(f"{name}.{column}" for column in column_names(tuple(outputs.values()), ()))
        return {column: tuple(itertools.islice(answers, output.width)) for column, output in outputs.items()}

    def _add(self, kind: str, step: Step) -> str:
        """Name a step by its kind, numbered where the graph has several, and unlike every raw column."""
        several = self._kinds.count(kind) > 1
        taken = self._raw.union(self._steps)
        names = (f"{kind}{number}" for number in itertools.count(1))
        name = next(name for name in (names if several else itertools.chain([kind], names)) if name not in taken)
        self._steps[name] = step
        return name


# Merlin's operators that are steps -> what their steps are called, and what reads them
_KINDS: Mapping[str, tuple[str, Callable[[_Reader, Any, Columns], Columns]]] = {
    "TransformWorkflow": ("workflow", _Reader.workflow),
    "PredictForest": ("forest", _Reader.forest),
    "PredictTensorflow": ("net", _Reader.net),
    "PredictPyTorch": ("net", _Reader.net),
}


def _kind(node: Any) -> str:
    """An operator's class; Ensemble.export puts its own in, which is called PredictForestTriton and so on."""
    kind = type(node.op)
    if kind.__module__.split(".")[0] not in ("merlin", "nvtabular"):
        return f"{kind.__module__}.{kind.__qualname__}"
    return str(kind.__name__).removesuffix("Triton")


def _answers(step: str, count: int) -> tuple[str, ...]:
    """References to the columns of a model."""
    return (f"{step}.score",) if count == 1 else tuple(f"{step}.score{number}" for number in range(count))


def _note(message: str) -> None:
    warnings.warn(message, MerlinNote, stacklevel=4)
