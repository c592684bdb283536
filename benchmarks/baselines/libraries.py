"""Baseline 1: a trained stack, opened with the libraries that trained it and answered in one Python process.

No lowered graph, no converter: `stack.yaml` says what reads what, and every artifact is asked as its own library's
documentation advises on one core.

- NVTabular: `workflow.transform` of a DataFrame, or of a Dataset; whichever `tune` finds faster for a batch size.
- XGBoost: `Booster.inplace_predict` on float32 rows, nthread 1, boosters loaded once.
- PyTorch: the saved program under `inference_mode`, one thread; programs are exported in evaluation mode.
- Keras: a compiled `tf.function`, `predict_on_batch` or `model(x, training=False)`, as `tune` finds faster.

The environment that thread pools are sized by, and the core, must be set before this module is imported.
"""

from __future__ import annotations

import fnmatch
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.stack import ForestStep, MeanStep, NetStep, Stack, WorkflowStep, split_reference

__all__ = ["Libraries"]

TRIALS, TRIED_S = 6, 1.0  # calls that a way of asking is tried for, or seconds; the median decides

Source = tuple[str, str]  # a step, and its column


@dataclass
class Call:
    """A call under way.

    Attributes:
        frame: the raw rows.
        made: workflow -> what it made of them, a DataFrame.
        every: the scalars of all steps, [rows, columns].
    """

    frame: Any
    made: dict[str, Any]
    every: NDArray[np.float32]


class Libraries:
    """A trained stack.

    Attributes:
        outputs: what it answers, in order.
        spent: step -> seconds that the last call spent in it.
    """

    def __init__(self, stack: Stack) -> None:
        """Open every artifact; a saved workflow is a pickle, and reading it runs it."""
        self.outputs = list(stack.outputs)
        self.spent: dict[str, float] = {}
        self._columns: dict[str, list[str]] = {}
        self._place: dict[Source, int] = {}  # among the scalars of all steps
        self._workflows: dict[str, _Workflow] = {}
        self._asked: dict[str, _Workflow | _Keras] = {}  # what can be asked in several ways
        self._chosen: dict[int, dict[str, str]] = {}  # rows -> step -> the way it is asked
        self._steps: dict[str, Callable[[Call], None]] = {}
        for name in stack.order():
            step = stack.steps[name]
            match step:
                case WorkflowStep():
                    self._steps[name] = self._open_workflow(name, step)
                case ForestStep():
                    self._steps[name] = self._open_forest(name, step, stack)
                case NetStep():
                    self._steps[name] = self._open_net(name, step, stack)
                case MeanStep():
                    self._steps[name] = self._mean(name, step)
        self._answers = [self._place[self._one(reference)] for reference in stack.outputs.values()]

    def complete(self, frame: Any) -> Any:
        """Raw rows as the workflows ask for them: targets, which TargetEncoding wants to see, are 0 where they lack."""
        asked = [name for workflow in self._workflows.values() for name in workflow.inputs]
        absent = dict.fromkeys(name for name in asked if name not in frame)
        return frame.assign(**dict.fromkeys(absent, np.int8(0))) if absent else frame

    def transform(self, frame: Any) -> dict[str, NDArray[Any]]:
        """Preprocessing alone: the numbers that NVTabular makes of a complete frame, by name."""
        made = [(workflow, workflow.transform(frame)) for workflow in self._workflows.values()]
        return {name: table[name].to_numpy() for workflow, table in made for name in workflow.numbers}

    def answer(self, frame: Any) -> NDArray[np.float32]:
        """Answers of a complete frame with the index 0, 1, ...: [rows, outputs]."""
        call = self._call(frame)
        for name, run in self._steps.items():
            start = time.perf_counter()
            run(call)
            self.spent[name] = time.perf_counter() - start
        return call.every[:, self._answers]

    def ask_by(self, ways: Mapping[str, str]) -> None:
        """Have steps asked in these ways, as `tune` chose them; the others as they were."""
        for name, way in ways.items():
            self._asked[name].way = way

    def tune(self, frame: Any) -> dict[str, str]:
        """Have NVTabular and Keras asked as is fastest for frames of so many rows; that is measured once.

        Returns:
            step -> the way it is asked.
        """
        if len(frame) not in self._chosen:
            call = self._call(frame)
            for name, run in self._steps.items():
                if name in self._asked:
                    _choose(self._asked[name], lambda run=run: run(call))
                run(call)
            self._chosen[len(frame)] = {name: asked.way for name, asked in self._asked.items()}
        self.ask_by(self._chosen[len(frame)])
        return self._chosen[len(frame)]

    def _call(self, frame: Any) -> Call:
        return Call(frame, {}, np.empty((len(frame), len(self._place)), np.float32))

    # ------------------------------------------------------------------------------------------------------ opening

    def _open_workflow(self, name: str, step: WorkflowStep) -> Callable[[Call], None]:
        workflow = self._workflows[name] = self._asked[name] = _Workflow(step.workflow)
        self._columns[name] = workflow.columns
        start = self._add(name, workflow.numbers)

        def run(call: Call) -> None:
            made = call.made[name] = workflow.transform(call.frame)
            call.every[:, start : start + len(workflow.numbers)] = made[workflow.numbers].to_numpy(np.float32)

        return run

    def _open_forest(self, name: str, step: ForestStep, stack: Stack) -> Callable[[Call], None]:
        import xgboost

        from tristage.export.forest.read import find_forests

        bags: dict[tuple[str, str], list[Any]] = {}
        for _, file, places in find_forests(name, step.forest, grouped=step.group is not None):
            booster = xgboost.Booster({"nthread": 1}, model_file=str(file))
            bags.setdefault((places.get("group", ""), places["target"]), []).append(booster)
        targets = [target for target in stack.targets if any(target == known for _, known in bags)]
        groups = sorted({group for group, _ in bags})
        names = next(iter(bags.values()))[0].feature_names
        features = np.array([self._place[source] for source in self._features(step, names)])
        group = None if step.group is None else self._one(step.group)
        start = self._add(name, targets)

        def run(call: Call) -> None:
            rows = np.take(call.every, features, axis=1)
            members: list[tuple[str, Any, NDArray[np.float32]]] = [("", slice(None), rows)]
            if group is not None:
                chosen = call.made[group[0]][group[1]].to_numpy()
                found = [(value, chosen == int(value)) for value in groups]
                call.every[:, start : start + len(targets)] = np.nan
                members = [(value, where, rows[where]) for value, where in found if where.any()]
            for value, where, part in members:
                for at, target in enumerate(targets):
                    bag = bags[value, target]
                    answers = [booster.inplace_predict(part, validate_features=False) for booster in bag]
                    call.every[where, start + at] = answers[0] if len(bag) == 1 else np.mean(answers, axis=0)

        return run

    def _open_net(self, name: str, step: NetStep, stack: Stack) -> Callable[[Call], None]:
        file = Path(step.net)
        net: _Torch | _Keras
        if file.suffix == ".pt2":
            net = _Torch(file)
        else:
            net = self._asked[name] = _Keras(file)
        reads = {tensor: self._many(references) for tensor, references in step.reads.items()}
        start = self._add(name, stack.targets)

        def run(call: Call) -> None:
            inputs = [self._tensor(call, reads[tensor], dtype, shape) for tensor, dtype, shape in net.inputs]
            call.every[:, start : start + len(stack.targets)] = net.ask(inputs)

        return run

    def _mean(self, name: str, step: MeanStep) -> Callable[[Call], None]:
        columns = self._columns[step.mean[0]]
        of = [[self._place[other, column] for column in columns] for other in step.mean]
        start = self._add(name, columns)

        def run(call: Call) -> None:
            call.every[:, start : start + len(columns)] = np.mean([call.every[:, at] for at in of], axis=0)

        return run

    def _tensor(self, call: Call, sources: Sequence[Source], dtype: str, shape: Sequence[Any]) -> NDArray[Any]:
        """An input of a net: lists filled up to their length, or columns side by side."""
        from examples.recsys2021.features import padded

        step, name = sources[0]
        if sources[0] not in self._place:
            return padded(call.made[step][name], int(shape[1])).astype(dtype, copy=False)
        if len(shape) == 1:
            return np.asarray(call.made[step][name].to_numpy(dtype))
        if dtype == "float32":
            return np.take(call.every, [self._place[source] for source in sources], axis=1)
        return np.stack([call.made[owner][column].to_numpy(dtype) for owner, column in sources], axis=1)

    # ---------------------------------------------------------------------------------------------------- references

    def _add(self, step: str, columns: Sequence[str]) -> int:
        start = len(self._place)
        self._columns.setdefault(step, list(columns))
        self._place.update({(step, column): start + at for at, column in enumerate(columns)})
        return start

    def _many(self, references: Sequence[str]) -> list[Source]:
        """Every column that references stand for, each once, in order."""
        found: list[Source] = []
        for reference in references:
            step, pattern = split_reference(reference)
            columns = self._columns[step]
            found += [(step, name) for name in columns if pattern is None or fnmatch.fnmatchcase(name, pattern)]
        return list(dict.fromkeys(found))

    def _one(self, reference: str) -> Source:
        (source,) = self._many([reference])
        return source

    def _features(self, step: ForestStep, names: Sequence[str] | None) -> list[Source]:
        """The columns of a forest's features, by the names it was trained with."""
        sources = self._many(step.reads)
        if names is None:
            return sources
        by_name = {column: (owner, column) for owner, column in sources if (owner, column) in self._place}
        by_name |= {f"{owner}.{column}": (owner, column) for owner, column in sources}
        return [by_name[name] for name in names]


def _choose(asked: Any, call: Callable[[], Any]) -> None:
    """Have something asked in the way that is fastest, by the median of a few calls."""
    times = {}
    for way in asked.WAYS:
        asked.way = way
        took = []
        while not took or (len(took) < TRIALS and sum(took) < TRIED_S):
            start = time.perf_counter()
            call()
            took.append(time.perf_counter() - start)
        times[way] = median(took[1:] or took)  # the first makes ready what others find ready
    asked.way = min(times, key=lambda way: times[way])


class _Workflow:
    """A fitted workflow.

    Attributes:
        inputs: the raw columns it asks for.
        columns: all it makes.
        numbers: its scalar columns.
        way: how it is asked, one of WAYS.
    """

    WAYS = ("transform(DataFrame)", "transform(Dataset)")

    def __init__(self, folder: Any) -> None:
        import dask

        from tristage.serving.nvtabular import load

        dask.config.set(scheduler="synchronous")  # the one thread there is
        warnings.simplefilter("ignore")  # NVTabular's own, at every call
        self.way = self.WAYS[0]
        self._fitted = load(Path(folder))
        self.inputs = self._fitted.input_schema.column_names
        self.columns = self._fitted.output_schema.column_names
        self.numbers = [column.name for column in self._fitted.output_schema if not column.is_list]

    def transform(self, frame: Any) -> Any:
        if self.way == self.WAYS[0]:
            return self._fitted.transform(frame)
        from merlin.io import Dataset

        return self._fitted.transform(Dataset(frame, cpu=True)).compute()


class _Torch:
    """A program that `torch.export.save` wrote; `inputs` are (name, dtype, shape)."""

    def __init__(self, file: Path) -> None:
        import torch

        torch.set_num_threads(1)
        program = torch.export.load(file)
        names = program.graph_signature.user_inputs
        values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
        self.inputs = [(name, str(values[name].dtype)[len("torch.") :], tuple(values[name].shape)) for name in names]
        self._spec, self._module, self._torch = program.call_spec.in_spec, program.module(), torch

    def ask(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        torch = self._torch
        with torch.inference_mode():
            tensors = list(map(torch.from_numpy, inputs))
            arguments, keywords = torch.utils._pytree.tree_unflatten(tensors, self._spec)
            return np.asarray(self._module(*arguments, **keywords).numpy())


class _Keras:
    """A .keras file; `inputs` are (name, dtype, shape)."""

    WAYS = ("tf.function", "predict_on_batch", "model(x, training=False)")

    def __init__(self, file: Path) -> None:
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        # OpenAI's triton, which PyPI's torch brings: its LLVM ends a process that has loaded TensorFlow's
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
        import keras
        import tensorflow

        self.way = self.WAYS[0]
        self._model = model = keras.saving.load_model(file, compile=False)
        self.inputs = [(tensor.name, str(tensor.dtype), tuple(tensor.shape)) for tensor in model.inputs]
        specs = [tensorflow.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs]
        self._function = tensorflow.function(lambda *x: model(list(x), training=False), input_signature=specs)

    def ask(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        match self.WAYS.index(self.way):
            case 0:
                return np.asarray(self._function(*inputs))
            case 1:
                return np.asarray(self._model.predict_on_batch(list(inputs)))
        return np.asarray(self._model(list(inputs), training=False))
