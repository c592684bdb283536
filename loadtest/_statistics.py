"""Triton's statistics before and after a cell: where the server spent its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tristage.errors import TristageError
from tristage.loadtest._report import StepShare

__all__ = ["Counters", "Graph", "between", "counters", "graph_of", "overlap", "shares", "when_quiet"]

_PHASES = ("queue", "compute_input", "compute_infer", "compute_output")
_QUIET_S = 0.03  # between two readings that have to agree
_PATIENCE_S = 1.0  # another client may keep them moving


@dataclass(frozen=True)
class Counters:
    """One model's running totals since it was loaded: requests answered, and nanoseconds spent on them.

    Attributes:
        count: requests answered without error.
        executions: times the model ran; Triton may join requests.
        cache_hits: requests answered from Triton's response cache.
        total_ns: from when a request reached the model until its answer left it.
        phases_ns: nanoseconds in queue, compute_input, compute_infer and compute_output, in this order.
    """

    count: int = 0
    executions: int = 0
    cache_hits: int = 0
    total_ns: int = 0
    phases_ns: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Graph:
    """The steps of an ensemble, or the one of a model that is none.

    Attributes:
        models: each step's model, in the ensemble's order; a model may be there more than once.
        feeds: for each step, the steps (by number) whose tensors it reads.
    """

    models: tuple[str, ...]
    feeds: tuple[frozenset[int], ...]

    def before(self, step: int) -> frozenset[int]:
        """All steps that have to end before a step begins."""
        found: set[int] = set()
        waiting = list(self.feeds[step])
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting.extend(self.feeds[one])
        return frozenset(found)


def graph_of(config: Mapping[str, Any]) -> Graph:
    """The graph that a model's configuration declares."""
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    if not steps:
        return Graph((str(config["name"]),), (frozenset(),))
    makers = {str(tensor): number for number, step in enumerate(steps) for tensor in step["output_map"].values()}
    feeds = [frozenset(makers[str(t)] for t in step["input_map"].values() if str(t) in makers) for step in steps]
    return Graph(tuple(str(step["model_name"]) for step in steps), tuple(feeds))


def counters(statistics: Mapping[str, Any]) -> dict[str, Counters]:
    """Triton's answer as one Counters a model, its versions added up."""
    found: dict[str, Counters] = {}
    for model in statistics.get("model_stats", []):
        inference = model.get("inference_stats", {})
        success = inference.get("success", {})
        one = Counters(
            count=int(success.get("count", 0)),
            executions=int(model.get("execution_count", 0)),
            cache_hits=int(inference.get("cache_hit", {}).get("count", 0)),
            total_ns=int(success.get("ns", 0)),
            phases_ns=_four([int(inference.get(phase, {}).get("ns", 0)) for phase in _PHASES]),
        )
        found[model["name"]] = _add(found.get(model["name"], Counters()), one, 1)
    return found


def between(before: Mapping[str, Counters], after: Mapping[str, Counters], model: str) -> Counters:
    """What `model` did between two readings."""
    return _add(after.get(model, Counters()), before.get(model, Counters()), -1)


def when_quiet(
    read: Callable[[], Mapping[str, Any]], model: str, at_least: int = 0, since: Mapping[str, Counters] | None = None
) -> dict[str, Counters]:
    """Read the counters once they hold what was answered; Triton books a request a moment after its answer has left.

    Args:
        read: asks the server for all statistics.
        model: the ensemble.
        at_least: requests the ensemble answered after `since`.
        since: an earlier reading.

    Returns:
        the first reading that holds as many and equals the one before; after a second, the last one. Empty where the
        server will not say, which costs the report a table, not the run.
    """
    try:
        last = counters(read())
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            time.sleep(_QUIET_S)
            now = counters(read())
            if now == last and between(since or {}, now, model).count >= at_least:
                break
            last = now
    except TristageError:
        return {}
    return last


def shares(graph: Graph, before: Mapping[str, Counters], after: Mapping[str, Counters]) -> tuple[StepShare, ...]:
    """Each model's part of the time that all of them took between two readings; the parts add up to 1.

    Empty where no model took any time.
    """
    spent = {model: between(before, after, model) for model in dict.fromkeys(graph.models)}
    whole = sum(sum(step.phases_ns) for step in spent.values())
    if whole <= 0:
        return ()
    means = {model: sum(step.phases_ns) / max(step.count, 1) for model, step in spent.items()}
    critical = _longest_chain(graph, means)
    beside = _beside(graph)
    return tuple(
        _share(model, step, whole, tuple(other for other in spent if other in beside[model]), model in critical)
        for model, step in spent.items()
    )


def overlap(graph: Graph, steps: Sequence[StepShare], server_ms: float) -> float:
    """How many ms a request spent in two steps at once, on average, at the least: what the steps took together, less
    what the whole ensemble took."""
    took = {step.model: step.total_ms for step in steps}
    return max(0.0, sum(took.get(model, 0.0) for model in graph.models) - server_ms)


def _beside(graph: Graph) -> dict[str, set[str]]:
    """For each model, those that may run at the same time."""
    found: dict[str, set[str]] = {model: set() for model in graph.models}
    before = [graph.before(step) for step in range(len(graph.models))]
    for one, model in enumerate(graph.models):
        for other, its in enumerate(graph.models):
            if model != its and one not in before[other] and other not in before[one]:
                found[model].add(its)
    return found


def _longest_chain(graph: Graph, took: Mapping[str, float]) -> set[str]:
    @cache
    def chain(step: int) -> tuple[float, tuple[int, ...]]:
        length, steps = max((chain(one) for one in graph.feeds[step]), default=(0.0, ()))
        return length + took[graph.models[step]], (*steps, step)

    return {graph.models[step] for step in max(chain(step) for step in range(len(graph.models)))[1]}


def _share(model: str, step: Counters, whole: int, beside: tuple[str, ...], critical: bool) -> StepShare:
    queue, taking, infer, giving = (ns / 1e6 / max(step.count, 1) for ns in step.phases_ns)
    return StepShare(
        model=model,
        count=step.count,
        executions=step.executions,
        queue_ms=queue,
        compute_input_ms=taking,
        compute_infer_ms=infer,
        compute_output_ms=giving,
        share=sum(step.phases_ns) / whole,
        beside=beside,
        critical=critical,
    )


def _add(left: Counters, right: Counters, sign: int) -> Counters:
    return Counters(
        count=left.count + sign * right.count,
        executions=left.executions + sign * right.executions,
        cache_hits=left.cache_hits + sign * right.cache_hits,
        total_ns=left.total_ns + sign * right.total_ns,
        phases_ns=_four([a + sign * b for a, b in zip(left.phases_ns, right.phases_ns, strict=True)]),
    )


def _four(values: Sequence[int]) -> tuple[int, int, int, int]:
    return (values[0], values[1], values[2], values[3])
