"""How large everything is: one dataclass, and two values of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["FULL", "SMALL", "Model", "Recipe", "Sizes"]


@dataclass(frozen=True)
class Model:
    """One model of the ensemble: what hill climbing weighs.

    Attributes:
        name: of its steps, before the fold's number.
        kind: a key of `models.KINDS`.
        folds: those it is trained for; each of them makes a net or a forest that learns from all other folds.
        seed: of its training.
    """

    name: str
    kind: str
    folds: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Recipe:
    """Models of one kind, which differ in their seeds.

    Attributes:
        kind: a key of `models.KINDS`.
        models: how many.
        folds: folds that each is trained for. With fewer than there are, the models take turns: the first takes the
            first ones, beginning at `first`.
        first: the first model's first fold.
    """

    kind: str
    models: int
    folds: int
    first: int = 0


@dataclass(frozen=True)
class Sizes:
    """How large it is.

    Attributes:
        rows: rows to learn from, in all folds together.
        held: rows that nobody learns from: the ensemble is scored on them, and they are its golden rows.
        rate: how many of 1 are clicked, about.
        inventory: places that an ad is shown at.
        items: different integers of a sequence.
        longest: the longest sequence.
        length: integers of a sequence that the workflows keep, and a request holds: the first ones, the newest.
        short: those that Wide & Deep reads.
        folds: each with a workflow of its own.
        recipes: the models.
        trees, learning_rate, depth, leaves, stop, stop_catboost: of forests: trees at most, what each adds, levels,
            leaves where it grows leaf by leaf, and trees without a better AUC after which XGBoost and CatBoost stop.
        width: numbers of an embedding.
        fields: numbers of a field of xDeepFM and DCNv3, whose fields are all as wide.
        state: numbers of a GRU's state, each way.
        projected: numbers that both states are projected to, where they are.
        deep: hidden layers of every MLP.
        cin: feature maps of xDeepFM's layers.
        crosses: layers of DCNv3's cross networks.
        epochs, warm_up, patience, net_rate, batch: of PyTorch's nets: epochs at most, epochs that the learning rate
            rises, epochs without a better AUC after which it stops, Adam's highest learning rate, rows of a step.
        swa_epochs: epochs of Wide & Deep, whose weights are averaged over them.
        restarts, steps: hill climbs, and models that each adds at most.
        threads: of a training; more than one only slow small models down.
    """

    rows: int
    held: int
    rate: float
    inventory: int
    items: int
    longest: int
    length: int
    short: int
    recipes: tuple[Recipe, ...]
    trees: int
    learning_rate: float
    depth: int
    leaves: int
    stop: int
    stop_catboost: int
    width: int
    fields: int
    state: int
    projected: int
    deep: tuple[int, ...]
    cin: tuple[int, ...]
    crosses: int
    epochs: int
    warm_up: int
    patience: int
    net_rate: float
    batch: int
    swa_epochs: int
    restarts: int
    steps: int
    threads: int
    folds: int = 10
    seed: int = 7

    def models(self) -> Iterator[Model]:
        """The models, recipe by recipe, each with a name and a seed of its own."""
        for place, recipe in enumerate(self.recipes):
            for number in range(recipe.models):
                start = recipe.first + number * recipe.folds
                folds = tuple(sorted((start + at) % self.folds for at in range(recipe.folds)))
                name = recipe.kind if recipe.models == 1 else f"{recipe.kind}_{number}"
                yield Model(name, recipe.kind, folds, self.seed + 1000 * place + 20 * number)


SMALL = Sizes(
    rows=3_000,
    held=500,
    rate=0.08,
    inventory=30,
    items=200,
    longest=6590,
    length=8,
    short=6,
    recipes=(
        Recipe("xgb_depthwise", models=10, folds=1),
        Recipe("xgb_lossguide", models=10, folds=1),
        Recipe("catboost", models=10, folds=1),
        Recipe("mlp", models=1, folds=1, first=0),
        Recipe("xdeepfm", models=1, folds=1, first=2),
        Recipe("dcnv3", models=1, folds=1, first=4),
        Recipe("wide_deep_projected", models=1, folds=1, first=6),
        Recipe("wide_deep_whole", models=1, folds=1, first=8),
        Recipe("wide_deep_keras", models=1, folds=1, first=9),
    ),
    trees=40,
    learning_rate=0.15,
    depth=4,
    leaves=12,
    stop=10,
    stop_catboost=10,
    width=8,
    fields=8,
    state=12,
    projected=8,
    deep=(32, 16),
    cin=(8, 8),
    crosses=2,
    epochs=4,
    warm_up=1,
    patience=2,
    net_rate=0.005,
    batch=64,
    swa_epochs=4,
    restarts=3,
    steps=40,
    threads=1,
)
FULL = Sizes(
    rows=10_700_000,
    held=1_500_000,
    rate=0.02,
    inventory=30,
    items=600,
    longest=6590,
    length=1000,
    short=512,
    recipes=(
        Recipe("xgb_depthwise", models=10, folds=10),
        Recipe("xgb_lossguide", models=8, folds=10),
        Recipe("catboost", models=4, folds=10),
        Recipe("mlp", models=4, folds=10),
        Recipe("xdeepfm", models=4, folds=10),
        Recipe("dcnv3", models=3, folds=10),
        Recipe("wide_deep_projected", models=1, folds=1),
        Recipe("wide_deep_whole", models=1, folds=1),
        Recipe("wide_deep_keras", models=1, folds=1),
    ),
    trees=10_000,
    learning_rate=0.007,
    depth=8,
    leaves=255,
    stop=300,
    stop_catboost=200,
    width=128,
    fields=128,
    state=96,
    projected=32,
    deep=(1024, 512, 256),
    cin=(128, 128),
    crosses=3,
    epochs=100,
    warm_up=5,
    patience=10,
    net_rate=0.002,
    batch=16_384,
    swa_epochs=5,
    restarts=20,
    steps=200,
    threads=16,
)
