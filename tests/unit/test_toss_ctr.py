"""The parts of the ad click example: rows, folds, scores, nets' own layers, hill climbing. No server."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, log_loss
from torch import nn

from examples.toss_ctr.climb import Predictions, blend, calibrate, climb
from examples.toss_ctr.dcnv3 import Cross, DCNv3
from examples.toss_ctr.ensemble import Member
from examples.toss_ctr.folds import assign
from examples.toss_ctr.metrics import average_precision, score, sigmoid, weighted_log_loss
from examples.toss_ctr.rows import CODES, COLUMNS, DAY, NUMBERS, SEQUENCE, awkward_rows, draw
from examples.toss_ctr.sequence import BiGRU
from examples.toss_ctr.sizes import FULL, SMALL
from examples.toss_ctr.stack import declare
from examples.toss_ctr.train import _weights
from examples.toss_ctr.xdeepfm import CIN
from tristage.stack import ForestStep, NetStep, WorkflowStep

SIZES = dataclasses.replace(SMALL, rows=1_500, held=100)
TABLES = (4, 12, 34, 11, 28, 204)


@pytest.fixture(scope="module")
def drawn():
    return draw(SIZES)


class TestRows:
    def test_columns_and_clicks(self, drawn):
        rows, clicked = drawn
        assert len(COLUMNS) == 118
        assert tuple(rows.columns) == COLUMNS
        assert len(rows) == len(clicked) == 1_600
        assert set(np.unique(clicked)) == {0.0, 1.0}
        assert abs(clicked.mean() - SIZES.rate) < 0.03

    def test_sequences_have_a_heavy_tail(self, drawn):
        lengths = drawn[0][SEQUENCE].map(len)
        assert lengths.min() >= 1
        assert lengths.max() == 6590
        assert lengths.mean() > 1.5 * lengths.median()
        items = np.concatenate(list(drawn[0][SEQUENCE]))
        assert items.min() >= 1
        assert items.max() <= SIZES.items

    def test_the_same_rows_every_time(self, drawn):
        rows, clicked = draw(SIZES)
        np.testing.assert_array_equal(clicked, drawn[1])
        np.testing.assert_array_equal(rows[NUMBERS[-1]], drawn[0][NUMBERS[-1]])

    def test_awkward_rows_are_spoilt(self, drawn):
        rows, held = drawn[0], drawn[0].iloc[SIZES.rows :].reset_index(drop=True)
        awkward = awkward_rows(held, SIZES)
        assert len(awkward) == 48
        assert {0, 1, SIZES.length + 1, 6590} <= set(awkward[SEQUENCE].map(len))
        assert np.isinf(awkward[list(NUMBERS)].to_numpy()).any()
        assert awkward[[*NUMBERS, "gender", "hour"]].isna().all(axis=1).sum() == 1
        assert rows[NUMBERS[0]].dtype == awkward[NUMBERS[0]].dtype == np.float32


def test_every_day_and_click_is_spread_over_the_folds(drawn):
    rows, clicked = drawn
    folds = assign(rows[DAY].to_numpy(), clicked, 10, 1)
    assert np.ptp(np.bincount(folds, minlength=10)) <= 1
    for day, click in product(np.unique(rows[DAY]), (0.0, 1.0)):
        inside = folds[(rows[DAY].to_numpy() == day) & (clicked == click)]
        assert np.ptp(np.bincount(inside, minlength=10)) <= 1


def test_models_of_both_sizes():
    small, full = list(SMALL.models()), list(FULL.models())
    assert len(small) == len(full) == 36
    assert len({model.name for model in small}) == 36
    assert {fold for model in small for fold in model.folds} == set(range(10))
    assert sum(len(model.folds) for model in small) == 36
    assert sum(len(model.folds) for model in full) == 333
    assert len({(model.kind, model.seed) for model in full}) == 36


class TestScores:
    @pytest.mark.parametrize("seed", range(3))
    def test_against_scikit_learn(self, seed):
        draw = np.random.default_rng(seed)
        clicked = (draw.random(500) < 0.1).astype(np.float32)
        probability = np.round(draw.random(500), 2)  # ties
        weight = np.where(clicked > 0, 0.5 / clicked.sum(), 0.5 / (1 - clicked).sum())
        wll = log_loss(clicked, np.clip(probability, 1e-15, 1 - 1e-15), sample_weight=weight)
        assert weighted_log_loss(clicked, probability) == pytest.approx(wll, abs=1e-12)
        ap = average_precision_score(clicked, probability)
        assert average_precision(clicked, probability) == pytest.approx(ap, abs=1e-12)
        assert score(clicked, probability) == pytest.approx(0.5 * ap + 0.5 / (1 + wll), abs=1e-12)

    def test_perfect_answers(self):
        clicked = np.array([0, 1, 1, 0], np.float32)
        assert score(clicked, clicked) == pytest.approx(1, abs=1e-9)


class TestBiGRU:
    ROWS = ([3, 1, 4, 1, 5], [9], [2, 6, 0, 5], [5, 3, 5, 8, 9, 7, 9, 3])

    def packed(self, module: BiGRU, rows: list[list[int]]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What torch's bidirectional GRU says of packed sequences: states of each row, and both ends."""
        both = nn.GRU(module.ahead.input_size, module.ahead.hidden_size, batch_first=True, bidirectional=True)
        for name, weights in module.ahead.named_parameters():
            getattr(both, name).data.copy_(weights.data)
            getattr(both, f"{name}_reverse").data.copy_(getattr(module.back, name).data)
        lists = [module.table(torch.tensor(row)) for row in rows]
        states, ends = both(nn.utils.rnn.pack_sequence(lists, enforce_sorted=False))
        padded, lengths = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
        return [its[:count] for its, count in zip(padded, lengths, strict=True)], torch.cat([ends[0], ends[1]], 1)

    def filled(self, rows: list[list[int]], length: int) -> torch.Tensor:
        made = torch.zeros(len(rows), length, dtype=torch.int64)
        for at, row in enumerate(rows):
            made[at, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return made

    @pytest.mark.parametrize("length", [8, 13])
    def test_projected_is_torchs_over_packed_sequences(self, length):
        torch.manual_seed(0)
        rows = [[code or 1 for code in row] for row in self.ROWS]
        module = BiGRU(10, 4, 3, 5)
        with torch.no_grad():
            want = module.projection(self.packed(module, rows)[1])
            torch.testing.assert_close(module(self.filled(rows, length)), want, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("length", [8, 13])
    def test_whole_is_attention_over_them(self, length):
        torch.manual_seed(1)
        rows = [[code or 1 for code in row] for row in self.ROWS]
        module = BiGRU(10, 4, 3, None)
        with torch.no_grad():
            states, _ = self.packed(module, rows)
            want = torch.stack([torch.softmax(module.attention(its), 0).T @ its for its in states]).squeeze(1)
            torch.testing.assert_close(module(self.filled(rows, length)), want, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("projected", [None, 5])
    def test_nothing_is_known_of_an_empty_sequence(self, projected):
        module = BiGRU(10, 4, 3, projected)
        with torch.no_grad():
            made = module(torch.zeros(2, 6, dtype=torch.int64))
            want = torch.zeros(2, 6) if projected is None else module.projection.bias.expand(2, -1)
            torch.testing.assert_close(made, want)


def test_the_cin_is_its_sum_of_products():
    torch.manual_seed(2)
    cin, fields = CIN(3, (4, 2)), torch.randn(5, 3, 6)
    with torch.no_grad():
        first = [layer.weight.reshape(len(layer.weight), -1, 3) for layer in cin.layers]
        maps, sums = fields, []
        for kernel, layer in zip(first, cin.layers, strict=True):
            made = torch.zeros(5, len(kernel), 6)
            for to, one, other in product(range(len(kernel)), range(maps.shape[1]), range(3)):
                made[:, to] += kernel[to, one, other] * maps[:, one] * fields[:, other]
            maps = torch.relu(made + layer.bias[:, None])
            sums.append(maps.sum(2))
        torch.testing.assert_close(cin(fields), torch.cat(sums, 1), rtol=1e-5, atol=1e-5)


class TestDCNv3:
    def test_a_cross_layer_by_hand(self):
        torch.manual_seed(3)
        layer, first, state = Cross(6), torch.randn(4, 6), torch.randn(4, 6)
        with torch.no_grad():
            layer.bias.normal_()
            half = state @ layer.kernel.weight.T
            centred = (half - half.mean(1, keepdim=True)) / (half.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            both = torch.cat([half, half * centred.clamp(min=0)], 1)
            torch.testing.assert_close(layer(first, state), first * (both + layer.bias) + state, rtol=1e-5, atol=1e-5)

    def test_tri_bce_by_hand(self):
        torch.manual_seed(4)
        net = DCNv3(SMALL, TABLES)
        scores, clicked, weight = torch.randn(50, 3), (torch.rand(50, 1) < 0.2).float(), torch.tensor(4.0)
        losses = [
            nn.functional.binary_cross_entropy_with_logits(logits, clicked, pos_weight=weight)
            for logits in (scores.mean(1, keepdim=True), scores[:, :1], scores[:, 1:2])
        ]
        want = losses[0] + sum(max(0.0, float(own - losses[0])) * own for own in losses[1:])
        torch.testing.assert_close(net.loss(scores, clicked, weight), want)

    def test_it_answers_the_mean_of_its_three_ways(self):
        torch.manual_seed(5)
        net = DCNv3(SMALL, TABLES).eval()
        given = {
            "codes": torch.randint(0, 4, (7, len(CODES))),
            "numbers": torch.randn(7, len(NUMBERS)),
            "seq": torch.randint(0, 9, (7, SMALL.length)),
        }
        with torch.no_grad():
            scores = net.scores(**given)
            made = net(**given)
            torch.testing.assert_close(made["click_margin"], scores.mean(1, keepdim=True))
            torch.testing.assert_close(made["click"], torch.sigmoid(made["click_margin"]))
            assert scores.shape == (7, 3)


def predictions(noise: tuple[float, ...], folds: int = 2, rows: int = 800) -> Predictions:
    """Models of one fold each, in turn, that know the truth more or less."""
    draw = np.random.default_rng(8)
    truth = draw.normal(-2, 2, rows)
    clicked = (draw.random(rows) < sigmoid(truth)).astype(np.float32)
    there = np.stack([(np.arange(rows) % folds == at % folds).astype(float) for at in range(len(noise))])
    logits = np.stack([truth + draw.normal(0, its, rows) for its in noise]) * there
    return Predictions(logits, there, clicked)


class TestClimb:
    def test_it_leaves_out_what_only_adds_noise(self):
        given = predictions((0.3, 0.3, 0.4, 0.4, 9.0, 9.0))
        found = climb(given, restarts=1, steps=20, seed=1)
        assert found.counts[:2].all()
        assert not found.counts[4:].any()
        assert found.tried == (found.score,)
        assert found.score == pytest.approx(score(given.clicked, sigmoid(blend(given, found.counts))))

    def test_it_is_never_worse_than_where_it_began(self):
        given = predictions((2.0, 1.0, 1.5, 2.5, 1.0, 0.8))
        every = climb(given, restarts=1, steps=0, seed=0)
        assert (every.counts @ given.there > 0).all()
        assert climb(given, restarts=1, steps=30, seed=0).score >= every.score
        assert climb(given, restarts=6, steps=30, seed=0).score >= climb(given, restarts=1, steps=30, seed=0).score

    def test_the_same_every_time(self):
        given = predictions((2.0, 1.0, 1.5, 2.5))
        first, again = (climb(given, restarts=3, steps=9, seed=5) for _ in range(2))
        np.testing.assert_array_equal(first.counts, again.counts)

    def test_every_fold_weighs_the_same(self):
        models = [SimpleNamespace(name=f"m{at}", folds=(at % 10,)) for at in range(36)]
        members = [SimpleNamespace(model=model, name=model.name, fold=model.folds[0]) for model in models]
        sizes = SimpleNamespace(models=lambda: iter(models), folds=10)
        counts = np.arange(36) % 4 * (np.arange(36) % 7 > 0)
        counts[:10] += 1
        weights = _weights(sizes, members, counts)
        for fold in range(10):
            assert sum(weights[one.name] for one in members if one.fold == fold) == pytest.approx(0.1)
        assert [weights[f"m{at}"] == 0 for at in range(36)] == (counts == 0).tolist()


class TestCalibration:
    def test_no_step_away_is_better(self):
        given = predictions((0.5, 0.5))
        logits = 1.7 * blend(given, np.ones(2)) - 3
        temperature, bias = calibrate(given.clicked, logits)
        best = weighted_log_loss(given.clicked, sigmoid(logits / temperature + bias))
        for factor, shift in product((0.99, 1, 1.01), (-0.01, 0, 0.01)):
            other = sigmoid(logits / (temperature * factor) + bias + shift)
            assert weighted_log_loss(given.clicked, other) >= best - 1e-9

    def test_it_keeps_the_order(self):
        given = predictions((0.5, 0.5))
        logits = blend(given, np.ones(2))
        temperature, bias = calibrate(given.clicked, logits)
        before, after = sigmoid(logits), sigmoid(logits / temperature + bias)
        assert average_precision(given.clicked, before) == pytest.approx(average_precision(given.clicked, after))
        assert weighted_log_loss(given.clicked, after) <= weighted_log_loss(given.clicked, before)


class TestStack:
    @pytest.fixture
    def ensemble(self, tmp_path):
        """36 members that nobody trained, every third of which weighs nothing."""
        features = SimpleNamespace(of_net=lambda rows: {"codes": rows, "numbers": rows, "seq": rows})
        folds = tuple(SimpleNamespace(workflow=object(), features=features) for _ in range(10))
        members = tuple(Member(model, model.folds[0], object()) for model in SMALL.models())
        weights = {member.name: float(at % 3) for at, member in enumerate(members)}
        (tmp_path / "weights.json").write_text(json.dumps(weights))
        return SimpleNamespace(
            sizes=SMALL,
            folds=folds,
            members=members,
            weights=weights,
            temperature=0.8,
            bias=0.5,
            golden=tmp_path / "golden.parquet",
            weights_file=tmp_path / "weights.json",
        )

    @pytest.mark.parametrize(
        ("options", "workflows", "models"),
        [
            ({}, 10, 24),
            ({"repeated": True}, 24, 24),
            ({"every": True}, 10, 36),
            ({"every": True, "repeated": True}, 36, 36),
        ],
    )
    def test_workflows_are_shared_and_what_weighs_nothing_is_left_out(self, ensemble, options, workflows, models):
        stack = declare(ensemble, **options)
        steps = [type(step) for step in stack.steps.values()]
        assert steps.count(WorkflowStep) == workflows
        assert steps.count(ForestStep) + steps.count(NetStep) == models
        assert set(stack.steps["score"].references()) == {
            name for name, weight in ensemble.weights.items() if weight or "every" in options
        }
        for member in ensemble.members:
            if member.name in stack.steps:
                (workflow,) = stack.reads_steps(member.name)
                assert stack.steps[workflow].workflow is ensemble.folds[member.fold].workflow
