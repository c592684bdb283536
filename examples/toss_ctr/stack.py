"""The ensemble as a stack: a workflow step for every fold, which its models share, and one mean."""

from __future__ import annotations

from examples.toss_ctr.ensemble import Ensemble, Member
from examples.toss_ctr.models import KINDS
from examples.toss_ctr.rows import CODES, NUMBERS, SEQUENCE
from tristage.stack import ForestStep, ListInput, MeanStep, NetStep, Stack, Step, WorkflowStep

__all__ = ["PREPROCESSING", "declare"]

PREPROCESSING = "features"  # what the names of workflow steps begin with


def declare(ensemble: Ensemble, *, every: bool = False, repeated: bool = False) -> Stack:
    """The stack.

    Args:
        ensemble: what was trained.
        every: all members weigh the same; else as hill climbing found, and those of weight 0 are left out by the stack.
        repeated: every member has its fold's workflow for itself, as if nothing were shared.
    """
    steps: dict[str, Step] = {}
    for member in ensemble.members:
        workflow = f"{PREPROCESSING}_{member.name if repeated else member.fold}"
        steps[workflow] = WorkflowStep(ensemble.folds[member.fold].workflow)
        steps[member.name] = _step(ensemble, member, workflow)
    steps["score"] = MeanStep(
        tuple(member.name for member in ensemble.members),
        weights=None if every else ensemble.weights_file,
        average="margins",
        temperature=ensemble.temperature,
        bias=ensemble.bias,
    )
    return Stack(
        name="toss_ctr",
        targets=("click",),
        steps=steps,
        outputs={"click": "score.click"},
        inputs={SEQUENCE: ListInput(ensemble.sizes.length)},  # the workflows read no further: the client sends no more
        golden=ensemble.golden,
    )


def _step(ensemble: Ensemble, member: Member, workflow: str) -> Step:
    codes = tuple(f"{workflow}.{name}" for name in CODES)
    numbers = tuple(f"{workflow}.{name}" for name in NUMBERS)
    if KINDS[member.model.kind].forest:
        return ForestStep(member.artifact, (*codes, *numbers), margins=True)
    examples = None
    if KINDS[member.model.kind].trainer == "PyTorch":
        examples = ensemble.folds[member.fold].features.of_net(slice(2))
    reads = {"codes": codes, "numbers": numbers, "seq": (f"{workflow}.{SEQUENCE}",)}
    return NetStep(member.artifact, reads, examples=examples)
