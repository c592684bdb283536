"""`forest-HASH.json`: the forests of one step, file by file, and how their sums become the step's answers.

It names the trees of each forest as its library (`trees-HASH.ubj`, XGBoost's) or Treelite (`trees-HASH.tl`) wrote them.
`tristage tune` builds engines from them; of serving engines only XGBoost reads them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tristage.serving.forest.engine import ForestError

__all__ = ["Member", "Recipe"]


@dataclass(frozen=True)
class Member:
    """One forest.

    Attributes:
        file: its trees, beside the recipe.
        postprocessor: how its margins become answers: one of `tristage.serving.forest.postprocess.POSTPROCESS`.
        alpha: sigmoid's factor.
        ratio: the isolation ratio's c.
        columns: margins of a row.
        outputs: answers of a row.
        categories: how a number becomes a category, as in `tristage.export.forest.Forest`.
        codes: where XGBoost was trained on a DataFrame's categories: feature -> their values, in the order of their
            codes.
    """

    file: str
    postprocessor: str
    alpha: float
    ratio: float
    columns: int
    outputs: int
    categories: str
    codes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """The forests of one step.

    Attributes:
        features: columns of a row.
        groups: values of the group column, in the order of their numbers; (None,) without groups.
        targets: names of the columns answered; (None,) for one forest that answers them all.
        average: what a bag averages, "predictions" or "margins".
        margins: whether the bags' mean margins are answered too, after the predictions.
        bags: for each group, for each target, the forests that answer.
    """

    features: int
    groups: tuple[str | None, ...]
    targets: tuple[str | None, ...]
    average: str
    margins: bool
    bags: tuple[tuple[tuple[Member, ...], ...], ...]

    @property
    def outputs(self) -> int:
        """Columns of an answer."""
        return sum(bag[0].outputs + (bag[0].columns if self.margins else 0) for bag in self.bags[0])

    def members(self) -> Iterator[Member]:
        """Every forest, in the order of groups, targets and bags."""
        return itertools.chain.from_iterable(itertools.chain.from_iterable(self.bags))

    def files(self) -> list[str]:
        """The files that it names, each once."""
        return list(dict.fromkeys(member.file for member in self.members()))

    def to_json(self) -> str:
        """As text, the same for the same content."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe.

        Raises:
            ForestError: it is missing or is none.
        """
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                features=int(said["features"]),
                groups=tuple(said["groups"]),
                targets=tuple(said["targets"]),
                average=str(said["average"]),
                margins=bool(said["margins"]),
                bags=tuple(tuple(tuple(map(_member, bag)) for bag in group) for group in said["bags"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ForestError(f"{path} cannot be read: {error!r}; export the stack again") from error


def _member(said: Mapping[str, object]) -> Member:
    codes = said["codes"]
    assert isinstance(codes, dict)
    return Member(**{**said, "codes": {int(feature): _whole(values) for feature, values in codes.items()}})  # type: ignore[arg-type]


def _whole(values: Sequence[float]) -> tuple[int, ...]:
    return tuple(map(int, values))
