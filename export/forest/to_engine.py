"""Treelite forests packed for the engine in `serving/forest`: flat arrays in one file that is memory-mapped.

How a packed forest is laid out, and why, stands at the head of serving/forest/packed.h. The same forests give the same
bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.export.forest.engine_layout import lay_out, rank_nodes
from tristage.export.forest.engine_nodes import EngineRefusal, Tree, join, read_trees
from tristage.export.forest.model import ForestSet
from tristage.serving.forest import available
from tristage.serving.forest.packed import FOREST, GROUP, HEADER, LINE, SLOT

__all__ = ["EngineRefusal", "Member", "members", "pack", "pack_forests", "slots_of"]

# Treelite's postprocessor -> the engine's number for it, whether sigmoid_alpha scales what it is given
POSTPROCESSORS = {
    "identity": (0, False),
    "identity_multiclass": (0, False),
    "sigmoid": (1, True),
    "multiclass_ova": (1, True),
    "exponential": (2, False),
    "softmax": (3, False),
}


@dataclass(frozen=True)
class Member:
    """One Treelite model in a packed forest.

    Attributes:
        model: the treelite.Model.
        output: the first column of the answer that it adds to.
        weight: what its answers are multiplied with before they are added.
        group: the number of the group whose rows it answers.
    """

    model: Any
    output: int = 0
    weight: float = 1.0
    group: int = 0


def members(forests: ForestSet) -> list[Member]:
    """A step's forests as they are packed: a column a target, bags averaged, groups in their order."""
    return [
        Member(forest.model, output, 1 / len(forests.forests[group, target]), number)
        for number, group in enumerate(forests.groups)
        for output, target in enumerate(forests.targets)
        for forest in forests.forests[group, target]
    ]


def pack_forests(forests: ForestSet) -> bytes:
    """Pack a step's forests.

    Raises:
        EngineRefusal: the engine isn't installed, or cannot take them.
    """
    if not available():
        raise EngineRefusal("tristage was installed without its forest engine; install it where there is a C compiler")
    if forests.margins:
        raise EngineRefusal("the engine answers no margins")
    if forests.average != "predictions":
        raise EngineRefusal("the engine averages predictions, not margins")
    for forest in forests.all():
        if forest.postprocessor != _postprocessor_name(forest.model):
            raise EngineRefusal(f"the engine knows no postprocessor {forest.postprocessor}")
    return pack(members(forests), forests.all()[0].features)


def pack(forests: Sequence[Member], features: int) -> bytes:
    """Pack Treelite models that read the same columns.

    Args:
        forests: the models; groups count up from 0, and each has at least one model.
        features: columns of a row.

    Returns:
        The file's bytes.

    Raises:
        EngineRefusal: the engine's layout cannot take one of them.
        ValueError: a group has no model.
    """
    forests = sorted(forests, key=lambda member: member.group)
    if {member.group for member in forests} != set(range(forests[-1].group + 1)):
        raise ValueError("every group from 0 up needs a forest")
    trees: list[Tree] = []
    slots: list[tuple[Any, ...]] = []
    groups = np.zeros(forests[-1].group + 1, GROUP)
    table = np.zeros(len(forests), FOREST)
    for number, member in enumerate(forests):
        group = groups[member.group]
        if not group["forests"]:
            group["slot"], group["forest"] = len(slots), number
        own = read_trees(member.model, len(slots))
        added = slots_of(member.model, [tree.slot - len(slots) for tree in own])
        place = len(slots) - group["slot"]
        table[number] = (place, len(added), member.output, *_postprocessor(member.model), member.weight)
        trees += own
        slots += added
        group["slots"] += len(added)
        group["forests"] += 1
    outputs = int((table["output"] + table["width"]).max())
    nodes = join(trees, features)
    columns = rank_nodes(nodes)
    table_of_slots = np.array(slots, SLOT)
    layout = lay_out(nodes, columns, table_of_slots)
    sections: list[NDArray[Any]] = [groups, columns.searches, table_of_slots, table, columns.keys]
    sections += [layout.uppers, layout.units, layout.nodes, layout.roots]
    body = b"".join(map(_whole_lines, (*sections[:-1], layout.values, layout.roots)))
    counts = struct.pack("<13Q", HEADER + len(body), features, columns.count, outputs, *map(len, sections))
    rest = counts.ljust(HEADER - 16, b"\0") + body
    return struct.pack("<8sII", b"tristree", 1, zlib.crc32(rest)) + rest


def _whole_lines(section: NDArray[Any]) -> bytes:
    data = section.tobytes()
    return data + b"\0" * (-len(data) % LINE)


def slots_of(model: Any, classes: Sequence[int]) -> list[tuple[Any, ...]]:
    """A slot for each class of a model whose trees are of `classes`; where the trees lie is left open."""
    header = model.get_header_accessor()
    width = int(header.get_field("num_class")[0])
    # float32 models are summed as XGBoost sums: in float32, in order, from the base score on
    single = model.num_tree > 0 and model.get_tree_accessor(0).get_field("leaf_value").dtype == np.float32
    mean = bool(header.get_field("average_tree_output")[0])
    counts = np.bincount(np.asarray(classes, np.int64), minlength=width)
    bases = np.broadcast_to(np.asarray(header.get_field("base_scores"), np.float64).reshape(-1), (width,))
    return [
        (0, single, 0, 0, 0, 0, *((0.0, 1 / max(int(count), 1), base) if mean else (base, 1.0, 0.0)))
        for count, base in zip(counts, bases, strict=True)
    ]


def _postprocessor(model: Any) -> tuple[int, float]:
    name = _postprocessor_name(model)
    if name not in POSTPROCESSORS:
        raise EngineRefusal(f"the engine knows no postprocessor {name}")
    number, scaled = POSTPROCESSORS[name]
    return number, float(model.get_header_accessor().get_field("sigmoid_alpha")[0]) if scaled else 1.0


def _postprocessor_name(model: Any) -> str:
    name = model.get_header_accessor().get_field("postprocessor")
    return name if isinstance(name, str) else str(name[0])
