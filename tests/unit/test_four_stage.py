"""The four stages' filter and order, by hand: what is refused, what moves up, what is lifted, capped and diverse."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def stages() -> Any:
    return importlib.import_module("examples.compact.four_stage")


def sizes(stages: Any, **changes: int) -> Any:
    import dataclasses

    return dataclasses.replace(stages.SMALL, **changes)


def test_what_is_refused_goes_and_the_rest_moves_up(stages: Any) -> None:
    net = stages.Filter(sizes(stages, near=6, kept=4), everywhere=0)
    made = net(
        item=torch.tensor([[10, 11, 12, 13, 14, -1]] * 4),
        similarity=torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]] * 4),
        region=torch.tensor([[0.0, 3.0, 4.0, 0.0, torch.nan, 0.0]] * 4),
        min_age=torch.tensor([[0.0, 0.0, 0.0, 18.0, 0.0, 0.0]] * 4),
        seen=torch.tensor([[10, -1], [99, -1], [10, 11], [10, 13]]),
        user=torch.tensor([[3.0, 18.0], [4.0, 17.9], [3.0, torch.nan], [1.0, 30.0]]),
    )
    assert made["item"].tolist() == [[11, 13, -1, -1], [10, 12, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, -1]]
    np.testing.assert_allclose(made["similarity"][0], [0.8, 0.6, 0, 0])


def order(stages: Any, click: list[float], category: list[float], vectors: Any, **options: Any) -> list[int]:
    count = len(click)
    net = stages.Order(sizes(stages, kept=count, top=count), vectors, campaign=7, **options)
    made = net(
        item=torch.tensor([[100 + one if value >= 0 else -1 for one, value in enumerate(click)]]),
        click=torch.tensor([click]).clamp(min=0),
        category=torch.tensor([category]),
        place=torch.arange(count, dtype=torch.float32)[None],
    )
    assert made["click"].shape == (1, count)
    return made["item"][0].tolist()


def test_a_campaign_is_lifted(stages: Any) -> None:
    apart = torch.eye(4)
    assert order(stages, [0.5, 0.4, 0.45, 0.1], [0, 7, 1, 2], apart) == [101, 100, 102, 103]


def test_a_category_has_so_many_places(stages: Any) -> None:
    apart = torch.eye(5)
    assert order(stages, [0.9, 0.8, 0.7, 0.2, 0.1], [0, 0, 0, 1, 1], apart, most=2) == [100, 101, 103, 104, -1]


def test_the_like_of_what_is_taken_waits(stages: Any) -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert order(stages, [0.9, 0.8, 0.7], [0, 1, 2], vectors) == [100, 102, 101]


def test_nothing_is_left(stages: Any) -> None:
    assert order(stages, [-1.0, -1.0], [torch.nan, torch.nan], torch.eye(2)) == [-1, -1]
    assert order(stages, [-1.0, 0.3], [torch.nan, 2], torch.eye(2)) == [101, -1]
