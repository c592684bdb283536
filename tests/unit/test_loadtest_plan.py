"""What a run sets out to do: when requests are due, which rate is the highest, how rows are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from tristage.loadtest._plan import due_times, highest_rate
from tristage.loadtest._rows import requests_of


def test_constant_arrivals_are_evenly_spread():
    due = due_times(10, "constant", seconds=1.0)
    np.testing.assert_allclose(due, np.arange(10) * 1e8, atol=2)
    assert len(due_times(10, "constant", seconds=1e9, count=7)) == 7


def test_poisson_arrivals_are_those_of_strangers():
    due = due_times(1000, "poisson", seconds=20.0, seed=1)
    assert 19_400 <= len(due) <= 20_600
    assert due.dtype == np.int64
    assert (np.diff(due) >= 0).all()
    assert due[-1] < 20e9
    gaps = np.diff(due) / 1e9
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as of an exponential
    assert np.array_equal(due, due_times(1000, "poisson", seconds=20.0, seed=1))
    assert not np.array_equal(due[:100], due_times(1000, "poisson", seconds=20.0, seed=2)[:100])


@pytest.mark.parametrize("start", [1.0, 100.0, 2000.0])
def test_the_highest_rate_that_holds_is_found(start: float):
    tried = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= 137.0

    held, missed = highest_rate(holds, start)
    assert held is not None
    assert missed is not None
    assert held <= 137.0 < missed <= held * 1.05
    assert len(tried) == len(set(tried)) <= 20


def test_a_limit_that_nothing_holds():
    tried = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return False

    held, missed = highest_rate(holds, 100.0)
    assert held is None
    assert missed == min(tried) < 2


def test_a_limit_that_everything_holds_ends_as_well():
    held, missed = highest_rate(lambda rate: True, 1.0)
    assert held is not None
    assert held >= 1e5
    assert missed is None


def test_rows_drawn_by_a_power_law_are_real_rows_and_unequally_popular():
    values = np.arange(1000, dtype=np.float32)[:, None]
    tensors = {"x": values, "double": values * 2}
    requests = requests_of(tensors, 64, exponent=1.0, seed=5)
    assert len(requests) == 1024
    assert all(request["x"].shape == (64, 1) for request in requests)
    drawn = np.concatenate([request["x"] for request in requests]).ravel()
    np.testing.assert_array_equal(np.concatenate([request["double"] for request in requests]).ravel(), drawn * 2)
    _, counts = np.unique(drawn, return_counts=True)
    counts = np.sort(counts)[::-1]
    # the k-th most popular in proportion to 1/k
    assert counts[0] / counts.sum() == pytest.approx(1 / np.sum(1 / np.arange(1, 1001)), rel=0.1)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.2)
    assert len({request["x"].tobytes() for request in requests}) == len(requests)
    again = requests_of(tensors, 64, exponent=1.0, seed=5)
    assert all(np.array_equal(one["x"], other["x"]) for one, other in zip(requests, again, strict=True))


def test_rows_are_drawn_from_one_row_too():
    requests = requests_of({"x": np.ones((1, 1), np.float32)}, 4, exponent=2.0)
    assert all((request["x"] == 1).all() for request in requests)
