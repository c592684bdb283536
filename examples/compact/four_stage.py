"""The four stages of a recommender in one stack, a user in and ranked items out.

Retrieval: two towers learn vectors of users and items; the items' lie in a Faiss index (HNSW, inner products), and the
nearest to the user's are candidates. Filtering: a net leaves out what the user has seen, what is not sold in the user's
region, and what the user is too young for; the rest moves up. Scoring: a forest answers how likely each is clicked.
Ordering: a net lifts a campaign's category and newer items, lets a category have only so many places, and takes one
item after the other, the likeliest that is least like those it has taken. Where too few are left, the rest are -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from examples.compact.features import columns, fit_workflow, sizes_of, transform
from examples.compact.learn import ask, fit, mlp
from examples.compact.shop import CATEGORIES, Shop, awkward_visits, draw_shop, draw_visits
from examples.compact.system import System, Trained
from tristage.stack import CandidatesStep, ForestStep, ListInput, NetStep, RetrieveStep, Stack, WorkflowStep

__all__ = ["FULL", "SMALL", "SYSTEM", "Filter", "Order", "Sizes", "Towers"]

_GOLDEN = 400
_FACTS = ("price", "popularity", "category")
_NOTHING = -1e9  # what a refused candidate is worth


@dataclass(frozen=True)
class Sizes:
    """How large it is.

    Attributes:
        vector: width of the towers' vectors.
        hidden: width of the user tower's hidden layer.
        users, items: how many there are.
        near: items that are retrieved, no more than a request may name.
        kept: of these, items that are scored.
        top: of these, items that are answered.
        seen: items that a request may name.
        trees: of the forest.
        rows: visits to learn from.
    """

    vector: int
    hidden: int
    users: int
    items: int
    near: int
    kept: int
    top: int
    seen: int
    trees: int
    rows: int
    epochs: int = 2
    batch: int = 256
    seed: int = 11


SMALL = Sizes(vector=16, hidden=32, users=600, items=500, near=60, kept=24, top=8, seen=64, trees=40, rows=6_000)
FULL = Sizes(
    vector=64, hidden=256, users=20_000, items=100_000, near=500, kept=200, top=20, seen=500, trees=500, rows=40_000
)


class Towers(nn.Module):
    """Reads codes [rows, 2], the user's and the region's, and ages [rows, 1]; items are known by their places."""

    def __init__(self, sizes: Sizes, tables: list[int]) -> None:
        super().__init__()
        self.user, self.region = nn.Embedding(tables[0], sizes.hidden), nn.Embedding(tables[1], 4)
        self.mlp = mlp(sizes.hidden + 5, (sizes.hidden,), sizes.vector)
        self.items = nn.Embedding(sizes.items, sizes.vector)

    def vectors(self) -> Any:
        """The items' vectors, of length 1: [items, vector]."""
        return nn.functional.normalize(self.items.weight, dim=1)

    def scores(self, codes: Any, age: Any, shown: Any) -> Any:
        """For learning: how much each user takes to each other one's item, [rows, rows]."""
        return 10 * self(codes, age) @ self.vectors()[shown].T

    def forward(self, codes: Any, age: Any) -> Any:
        """The user's vector, of length 1: [rows, vector]."""
        user = torch.cat([self.user(codes[:, 0]), self.region(codes[:, 1]), age], 1)
        return nn.functional.normalize(self.mlp(user), dim=1)


class Filter(nn.Module):
    """Reads candidates' items, similarities, regions and minimum ages, and the user's seen items, region and age.

    What is refused becomes -1, and what is not moves up in its order.
    """

    def __init__(self, sizes: Sizes, everywhere: int) -> None:
        super().__init__()
        self.near, self.kept, self.everywhere = sizes.near, sizes.kept, everywhere

    def forward(self, item: Any, similarity: Any, region: Any, min_age: Any, seen: Any, user: Any) -> Any:
        """item [rows, kept] int64 and similarity [rows, kept]; user is the user's region and age, [rows, 2]."""
        new = ~(item[:, :, None] == seen[:, None, :]).any(2)
        sold = (region == self.everywhere) | (region == user[:, :1])
        grown = (min_age <= 0) | (user[:, 1:] >= min_age)
        good = (item >= 0) & new & sold & grown  # a fact that is not known is NaN, which equals and exceeds nothing
        place = torch.arange(self.near, dtype=torch.float32) + self.near * (~good).float()
        at = place.topk(self.kept, dim=1, largest=False).indices
        kept = good.gather(1, at)
        return {
            "item": torch.where(kept, item.gather(1, at), -1),
            "similarity": torch.where(kept, similarity.gather(1, at), 0.0),
        }


class Order(nn.Module):
    """Reads candidates' items, probabilities of a click, categories and places in the catalogue, [rows, kept] each."""

    def __init__(self, sizes: Sizes, vectors: Any, campaign: int, lift: float = 1.3, most: int = 3) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.kept, self.top, self.campaign, self.lift, self.most = sizes.kept, sizes.top, campaign, lift, most

    def forward(self, item: Any, click: Any, category: Any, place: Any) -> Any:
        """The ranked items and their probabilities: item [rows, top] int64, click [rows, top]."""
        known = item >= 0
        place = torch.where(known, place, 0.0)
        worth = torch.where(category == self.campaign, self.lift * click, click)
        worth = worth + 0.01 * place / len(self.vectors)  # newer ones first: forests answer many items alike
        vector = self.vectors[place.long()]
        like = torch.zeros_like(click)  # to the likest that is taken
        many = torch.zeros_like(click)  # of its category that are taken
        left, taken = known, []
        for _ in range(self.top):
            worthy = torch.where(left, worth - 0.2 * like, _NOTHING)
            best = worthy.argmax(1, keepdim=True)
            found = left.gather(1, best)
            taken.append(torch.where(found, best, -1))
            chosen = vector.gather(1, best[:, :, None].expand(-1, 1, vector.shape[2]))
            like = torch.maximum(like, (vector * chosen).sum(2))
            many = many + ((category == category.gather(1, best)) & found).float()
            left = left & (torch.arange(self.kept) != best) & (many < self.most)
        at = torch.cat(taken, 1)
        inside, found = at.clamp(min=0), at >= 0
        return {
            "item": torch.where(found, item.gather(1, inside), -1),
            "click": torch.where(found, click.gather(1, inside), 0.0),
        }


@dataclass(frozen=True)
class Stages:
    """What was trained, stage by stage, and what each answers by its own library."""

    sizes: Sizes
    workflow: Any
    towers: Towers
    index: Any
    facts: Any
    filter: Filter
    forest: Any
    order: Order

    def user(self, rows: pd.DataFrame) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """What the user tower reads, and its vectors."""
        made = transform(self.workflow, rows[["user", "region", "age"]])
        read = {"codes": columns(made, ("user", "region"), "int64"), "age": columns(made, ("age",), "float32")}
        return read, ask(_Named(self.towers), read)["vector"]

    def of_items(self, items: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What is known of candidates, [rows, candidates]; NaN of those that are not items."""
        made = transform(self.facts, pd.DataFrame({"item": items.ravel()}))
        return {name: made[name].to_numpy().reshape(items.shape) for name in made if name != "item"}

    def answer(self, rows: pd.DataFrame) -> Mapping[str, NDArray[Any]]:
        """The whole, by NVTabular, PyTorch, Faiss and XGBoost themselves."""
        read, vector = self.user(rows)
        similarity, near = self.index.search(vector, self.sizes.near)
        facts = self.of_items(near)
        seen = np.full((len(rows), self.sizes.seen), -1, np.int64)
        for row, items in enumerate(rows["seen"]):
            its = np.asarray(items, np.int64)[: self.sizes.seen]
            seen[row, : len(its)] = its
        age = rows["age"].to_numpy(np.float32)[:, None]
        user = np.concatenate([read["codes"][:, 1:].astype(np.float32), age], 1)
        single = {name: facts[name].astype(np.float32) for name in ("region", "min_age")}
        kept = ask(self.filter, {"item": near, "similarity": similarity, **single, "seen": seen, "user": user})
        facts = self.of_items(kept["item"])
        features = [facts[name] for name in _FACTS] + [kept["similarity"], np.repeat(age, self.sizes.kept, axis=1)]
        click = self.forest.inplace_predict(np.stack(features, axis=2).reshape(-1, len(features)).astype(np.float32))
        ranked = ask(
            self.order,
            {
                "item": kept["item"],
                "click": click.reshape(kept["item"].shape),
                **{name: facts[name].astype(np.float32) for name in ("category", "place")},
            },
        )
        return {"items": ranked["item"], "clicks": ranked["click"]}

    def stack(self, golden: Path) -> Stack:
        """The four stages as one stack."""
        known = Stack("known", {"facts": WorkflowStep(self.facts)}, {n: f"facts.{n}" for n in ("region", "min_age")})
        click = ForestStep(self.forest, (*(f"facts.{name}" for name in _FACTS), "similarity", "age"))
        scoring = Stack(
            "scoring",
            {"facts": WorkflowStep(self.facts), "click": click},
            {"click": "click.click", "category": "facts.category", "place": "facts.place"},
            targets=("click",),
        )
        filtering = {
            **{"item": "near.item*", "similarity": "near.score*"},
            **{"region": "known.region*", "min_age": "known.min_age*"},
            **{"seen": "seen", "user": ("features.region", "age")},
        }
        ordering = {
            "item": "kept.item*",
            **{"click": "scored.click*", "category": "scored.category*", "place": "scored.place*"},
        }
        return Stack(
            "four_stage",
            {
                "features": WorkflowStep(self.workflow),
                "tower": self._net(self.towers, {"codes": ("features.user", "features.region"), "age": "features.age"}),
                "near": RetrieveStep(self.index, "tower", self.sizes.near),
                "known": CandidatesStep(known, each={"item": "near.item*"}),
                "kept": self._net(self.filter, filtering),
                "scored": CandidatesStep(
                    scoring, each={"item": "kept.item*", "similarity": "kept.similarity*"}, shared={"age": "age"}
                ),
                "ranked": self._net(self.order, ordering),
            },
            outputs={"items": "ranked.item*", "clicks": "ranked.click*"},
            inputs={"seen": ListInput(self.sizes.seen, pad=-1)},
            golden=golden,
        )

    def _net(self, net: nn.Module, reads: Mapping[str, Any]) -> NetStep:
        """A net step, with rows of zeros to say what it reads."""
        sizes = self.sizes
        widths = {"codes": 2, "user": 2, "seen": sizes.seen}
        wide = sizes.near if net is self.filter else sizes.kept
        whole = ("codes", "seen", "item")
        examples = {
            name: np.zeros(
                (2, 1 if reads[name] == "features.age" else widths.get(name, wide)),
                np.int64 if name in whole else np.float32,
            )
            for name in reads
        }
        return NetStep(net, reads, examples=examples)


class _Named(nn.Module):
    """A net's one answer, called `vector`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, **inputs: Any) -> Any:
        return {"vector": self.net(**inputs)}


def train(sizes: Sizes, folder: Path) -> Trained:
    """Train it; see `System.train`."""
    torch.manual_seed(sizes.seed)
    shop = draw_shop(sizes.users, sizes.items, sizes.seed)
    visits = draw_visits(shop, sizes.rows + _GOLDEN, sizes.seen, sizes.seed + 1)
    learn, held = visits.iloc[: sizes.rows], visits.iloc[sizes.rows :]
    workflow, facts = _workflows(shop, learn, folder)
    made = transform(workflow, learn[["user", "region", "age"]])
    codes, age = columns(made, ("user", "region"), "int64"), columns(made, ("age",), "float32")
    place = pd.Series(np.arange(sizes.items), shop.items["item"])
    shown = place[learn["shown"]].to_numpy()
    towers = Towers(sizes, [size + 3 for size in sizes_of(made, ("user", "region"))])
    inputs = {"codes": codes, "age": age, "shown": shown}
    fit(towers, inputs, np.arange(len(learn)), _next_to_itself, sizes.epochs, sizes.batch)
    vectors = towers.vectors().detach()
    everywhere = 0  # no user's region has the code
    stages = Stages(
        sizes,
        workflow,
        towers,
        _index(vectors.numpy(), shop.items["item"].to_numpy()),
        facts,
        Filter(sizes, everywhere).eval(),
        _forest(sizes, learn, towers, codes, age, shown, shop),
        Order(sizes, vectors, campaign=CATEGORIES - 1).eval(),
    )
    golden = folder / "golden.parquet"
    raw = ["user", "region", "age", "seen"]
    held[raw].to_parquet(golden)
    awkward = awkward_visits(held[raw], shop, sizes.seen)
    _, vector = stages.user(awkward)
    _, near = stages.index.search(vector, sizes.near)
    for row in range(1, 5):  # of all that is near, none is left, or few are
        awkward.at[len(awkward) - row, "seen"] = near[-row, row - 1 :]
    return Trained(stages.stack(golden), awkward, stages.answer)


def _workflows(shop: Shop, visits: pd.DataFrame, folder: Path) -> tuple[Any, Any]:
    """What is made of a user, and what is known of an item: its facts, its region as a user's, its place."""
    from nvtabular import ops

    encode = ["user", "region"] >> ops.Categorify(out_path=str(folder / "categories"))
    grown = ["age"] >> ops.FillMissing(fill_val=35) >> ops.Clip(min_value=0, max_value=100) >> ops.Normalize()
    workflow = fit_workflow(encode + grown, visits[["user", "region", "age"]], folder)
    regions = pd.DataFrame({"user": "u0", "region": shop.items["region"], "age": 35.0})
    codes = transform(workflow, regions)["region"].to_numpy()
    table = shop.items.assign(
        region=np.where(shop.items["region"].isna(), 0, codes).astype(np.float64),
        category=shop.items["category"].astype(np.float64),
        place=np.arange(len(shop.items), dtype=np.float64),
    )
    facts = fit_workflow(["item"] >> ops.JoinExternal(table, on="item"), shop.items[["item"]], folder)
    return workflow, facts


def _index(vectors: NDArray[np.float32], items: NDArray[np.int64]) -> Any:
    """The items' vectors, by their ids."""
    import faiss

    inner = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    inner.hnsw.efConstruction, inner.hnsw.efSearch = 80, 128
    index = faiss.IndexIDMap2(inner)
    index.add_with_ids(vectors, items)
    return index


def _forest(
    sizes: Sizes,
    visits: pd.DataFrame,
    towers: Towers,
    codes: NDArray[np.int64],
    age: NDArray[np.float32],
    shown: NDArray[np.int64],
    shop: Shop,
) -> Any:
    """Whether what was shown was clicked, by its facts, how near it is to the user, and the user's age."""
    import xgboost

    with torch.inference_mode():
        vector = towers(torch.from_numpy(codes), torch.from_numpy(age))
        similarity = (vector * towers.vectors()[torch.from_numpy(shown)]).sum(1).numpy()
    facts = shop.items.iloc[shown]
    features = [facts[name].to_numpy(np.float32) for name in _FACTS] + [similarity, visits["age"].to_numpy(np.float32)]
    matrix = xgboost.DMatrix(np.stack(features, axis=1), visits["click"].to_numpy())
    settings = {"objective": "binary:logistic", "max_depth": 5, "nthread": 1, "seed": sizes.seed, "eta": 0.2}
    return xgboost.train(settings, matrix, sizes.trees)


def _next_to_itself(scores: Any, _: Any) -> Any:
    """The user's own item among those of the batch."""
    return nn.functional.cross_entropy(scores, torch.arange(len(scores)))


SYSTEM = System(
    "four_stage",
    "Four stages",
    "best practices 2.1",
    "a Faiss index, a stack asked about every candidate, masks and a greedy choice of diverse items in nets",
    {"small": SMALL, "full": FULL},
    train,
)
