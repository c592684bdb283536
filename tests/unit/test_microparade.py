"""MicroParade's parts: its features against NVTabular's own operators, histories, tokens as BERT itself takes them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tristage.errors import ArtifactError

torch = pytest.importorskip("torch")
nvt = pytest.importorskip("nvtabular")
pytest.importorskip("transformers")

from examples.microparade import TARGETS  # noqa: E402
from examples.microparade.bi_encoder import BiEncoder, KeptPast, KeptTweets  # noqa: E402
from examples.microparade.data import Data, inputs, prepare  # noqa: E402
from examples.microparade.encoder import CLS, PREFIXES, SEP, UNK, TweetEncoder, bert  # noqa: E402
from examples.microparade.features import FEATURES, answers, learned  # noqa: E402
from examples.microparade.net import MicroParade  # noqa: E402
from examples.microparade.operators import CountTabs  # noqa: E402
from examples.microparade.rows import BEFORE, draw, engaged, past_tokens  # noqa: E402
from examples.microparade.sizes import FULL, SMALL  # noqa: E402

sys.path.append(str(Path(__file__).parent))
from test_workflow_compiler import _own_folder, agree, fit  # noqa: E402, F401

SIZES = replace(SMALL, rows=600, golden=40, users=60)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return prepare(SIZES, tmp_path_factory.mktemp("microparade"))


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return draw(SIZES)


def test_the_texts_widths() -> None:
    assert len(FEATURES) == len(set(FEATURES)) == 51
    assert (FULL.width, FULL.compact, FULL.compact + len(FEATURES)) == (768, 192, 243)
    assert SMALL.compact * 4 == SMALL.width
    net = MicroParade(replace(SMALL, each=True))
    assert net.aggregator.hours.weight.shape == (24, SMALL.width)
    assert [head.top[-1].out_features for head in net.aggregator.heads] == [1, 1, 1, 1]
    assert [head.top[-1].out_features for head in MicroParade(SMALL).aggregator.heads] == [4]


class TestRows:
    def test_the_same_sizes_draw_the_same_rows(self, rows: pd.DataFrame) -> None:
        again = draw(SIZES)
        pd.testing.assert_frame_equal(rows.drop(columns="text_tokens"), again.drop(columns="text_tokens"))

    def test_histories_are_the_readers_last_engagements(self, rows: pd.DataFrame) -> None:
        for at in range(0, len(rows), 37):
            before = rows.iloc[:at]
            its = before[(before["b_user_id"] == rows["b_user_id"][at]) & before[list(TARGETS)].any(axis=1)]
            its = its.iloc[::-1].head(SIZES.past)
            assert rows["mask_hist"][at].tolist() == [1] * len(its) + [0] * (SIZES.past - len(its))
            assert rows["interaction_time_hist"][at].tolist() == its["timestamp"].tolist()
            for target in TARGETS:
                assert rows[engaged(target)][at].tolist() == its[target].tolist()
            for column, tokens in zip(past_tokens(SIZES.past), [*its["text_tokens"]], strict=False):
                assert rows[column][at].tolist() == tokens.tolist()
            assert all(len(rows[column][at]) == 0 for column in past_tokens(SIZES.past)[len(its) :])

    def test_some_are_empty_overlong_and_of_readers_without_a_past(self, rows: pd.DataFrame) -> None:
        lengths = rows["text_tokens"].map(len)
        assert (lengths == 0).any()
        assert (lengths > SIZES.tokens).any()
        assert rows["mask_hist"].map(sum).isin([0]).any()


class TestFeatures:
    def test_differences_are_those_of_difference_lag(self, rows: pd.DataFrame, data: Data) -> None:
        """Over all of a reader's rows, in order, as NVTabular takes them; a null of it is 0 here."""
        learn = rows.iloc[: SIZES.rows]
        made = _unscaled(data, learned(data.workflow, learn))
        order = learn.reset_index(drop=True).sort_values(["b_user_id", "timestamp"], kind="stable").index
        ordered = learn.reset_index(drop=True).loc[order, ["b_user_id", *[n for n in BEFORE if n != "language"]]]
        ordered["language"] = made["language"].round().astype("int64").loc[order]
        names = list(BEFORE)
        lag = nvt.Workflow(names >> nvt.ops.DifferenceLag(partition_cols=["b_user_id"], shift=1))
        wanted = lag.fit_transform(nvt.Dataset(ordered.reset_index(drop=True), cpu=True)).to_ddf().compute()
        assert wanted["timestamp_difference_lag_1"].isna().sum() == learn["b_user_id"].nunique()
        for name in names:
            expected = wanted[f"{name}_difference_lag_1"].fillna(0).to_numpy()
            got = made[f"{name}_DiffLag"].loc[order].to_numpy()
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-3, err_msg=name)

    def test_a_row_to_learn_from_is_encoded_by_other_folds(self, rows: pd.DataFrame, data: Data) -> None:
        learn = rows.iloc[: SIZES.rows].reset_index(drop=True)
        folds = np.random.RandomState(42).choice(np.arange(5, dtype="uint8"), len(learn))
        made = _unscaled(data, learned(data.workflow, learn))["TE_b_user_id_like"].to_numpy()
        mean = learn["like"].astype(np.float64).mean()
        for at in range(0, len(learn), 41):
            others = learn[(folds != folds[at]) & (learn["b_user_id"] == learn["b_user_id"][at])]["like"]
            own = learn[(folds == folds[at]) & (learn["b_user_id"] == learn["b_user_id"][at])]
            assert at in own.index
            assert made[at] == pytest.approx((others.sum() + 20 * mean) / (len(others) + 20), abs=1e-5)

    def test_a_row_that_is_answered_is_encoded_by_all(self, rows: pd.DataFrame, data: Data) -> None:
        learn = rows.iloc[: SIZES.rows].reset_index(drop=True)
        made = _unscaled(data, answers(data.workflow, learn))["TE_b_user_id_like"].to_numpy()
        mean = learn["like"].astype(np.float64).mean()
        for at in range(0, len(learn), 41):
            its = learn[learn["b_user_id"] == learn["b_user_id"][at]]["like"]
            assert made[at] == pytest.approx((its.sum() + 20 * mean) / (len(its) + 20), abs=1e-5)

    @pytest.mark.parametrize("most", [1, 3, 16])
    def test_values_of_a_text_are_counted(self, most: int) -> None:
        texts = [None, "", "a", "\t", "a\t\tb", "\ta", "a\t", "é漢\tnaïve", "a\tb\tc\td\te", "x\n\ty"]
        frame = pd.DataFrame({"tags": texts})
        workflow = fit(["tags"] >> CountTabs(most), frame)
        made = workflow.transform(frame.copy())["tags"]
        assert made.tolist() == [min(len(text.split("\t")), most) if text else 0 for text in texts]
        agree(workflow, frame)


def _unscaled(data: Data, features: pd.DataFrame) -> pd.DataFrame:
    """Features before they were brought to unit width."""
    from merlin.dag.node import iter_nodes

    made = features.astype(np.float64)
    for node in iter_nodes([data.workflow.output_node]):
        if isinstance(node.op, nvt.ops.Normalize):
            for name, mean in node.op.means.items():
                made[name] = features[name].astype(np.float64) * (node.op.stds[name] or 1) + mean
    return made


@pytest.fixture(scope="module")
def encoder() -> TweetEncoder:
    torch.manual_seed(1)
    return TweetEncoder(bert(SMALL).eval())


class TestTokens:
    @staticmethod
    def asked(encoder: TweetEncoder, *tweets: list[int]) -> Any:
        """BERT itself, of the tokens and nothing else."""
        pieces = [[CLS, *tweets[0], SEP], *([*tweet, SEP] for tweet in tweets[1:])]
        kinds = [kind for kind, piece in enumerate(pieces) for _ in piece]
        tokens = torch.tensor([[token for piece in pieces for token in piece]])
        return encoder.bert(input_ids=tokens, token_type_ids=torch.tensor([kinds])).last_hidden_state[:, 0]

    @pytest.mark.parametrize("tweet", [[], [200], [200, 201, 202], [300] * 12])
    @pytest.mark.parametrize("other", [None, [], [250], [400] * 7])
    def test_padding_is_not_there_for_bert(
        self, encoder: TweetEncoder, tweet: list[int], other: list[int] | None
    ) -> None:
        given = [tweet] if other is None else [tweet, other]
        padded = [torch.tensor([its + [0] * (12 - len(its))]) for its in given]
        scattered = [torch.tensor([[0] * (12 - len(its)) + its]) for its in given]
        with torch.inference_mode():
            wanted = self.asked(encoder, *given)
            torch.testing.assert_close(encoder(*padded), wanted, atol=1e-5, rtol=0)
            torch.testing.assert_close(encoder(*scattered), wanted, atol=1e-5, rtol=0)

    def test_unknown_ids(self, encoder: TweetEncoder) -> None:
        with torch.inference_mode():
            made = encoder(torch.tensor([[-1, SMALL.vocabulary, 2**62, 200]]))
            torch.testing.assert_close(made, self.asked(encoder, [UNK, UNK, UNK, 200]), atol=1e-5, rtol=0)

    def test_a_berts_own_weights(self, tmp_path: Path) -> None:
        made = bert(SMALL)
        made.save_pretrained(tmp_path / "bert")
        again = bert(replace(SMALL, width=1, bert=tmp_path / "bert"))
        for name, weight in made.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], weight, atol=0, rtol=0)
        with pytest.raises(ArtifactError, match=r"holds no BERT \(no config.json\)"):
            bert(replace(SMALL, bert=tmp_path))
        (tmp_path / "bert" / "model.safetensors").unlink()
        with pytest.raises(ArtifactError, match="cannot be read"):
            bert(replace(SMALL, bert=tmp_path / "bert"))
        with pytest.raises(ArtifactError, match=r"reads 512 tokens, a pair of tweets has up to 807"):
            bert(replace(SMALL, tokens=400))


class TestNet:
    def test_what_is_masked_changes_nothing(self, data: Data) -> None:
        net = MicroParade(SIZES).eval()
        read = {name: torch.from_numpy(values) for name, values in data.read(data.awkward).items()}
        other = dict(read)
        hidden = read["there"] == 0
        length = SIZES.tokens
        other["past"] = torch.where(hidden.repeat_interleave(length, 1), 333, read["past"])
        other["seconds"] = torch.where(hidden, 77_777, read["seconds"])
        other["engaged"] = torch.where(hidden.repeat(1, len(PREFIXES)), 1, read["engaged"])
        with torch.inference_mode():
            torch.testing.assert_close(net(**other), net(**read), atol=1e-6, rtol=0)
            seen = dict(read) | {"past": torch.where(~hidden.repeat_interleave(length, 1), 333, read["past"])}
            assert (net(**seen) - net(**read)).abs().max() > 1e-4

    def test_hours_prefixes_and_every_past_tweet_count(self, data: Data) -> None:
        net = MicroParade(SIZES).eval()
        read = {name: torch.from_numpy(values[:1]) for name, values in data.inputs.items()}
        read["there"] = torch.ones_like(read["there"])
        read["past"] = torch.full_like(read["past"], 200)
        with torch.inference_mode():
            answer = net(**read)
            for name in ("tokens", "past", "seconds", "engaged", "numbers", "there"):
                for at in range(0, read[name].shape[1], SIZES.tokens if name == "past" else 1):
                    changed = read[name].clone()
                    changed[:, at] = {"seconds": changed[:, at] + 3600, "tokens": 555, "past": 555}.get(
                        name, 1 - changed[:, at]
                    )
                    assert (net(**read | {name: changed}) - answer).abs().max() > 0, (name, at)

    @pytest.mark.parametrize("prefix", [True, False])
    def test_kept_vectors_answer_what_their_tweets_answer(self, data: Data, prefix: bool) -> None:
        torch.manual_seed(4)
        whole = BiEncoder(SIZES).eval()
        read = {name: torch.from_numpy(values[:50]) for name, values in data.inputs.items()}
        engaged_so = read.pop("engaged")
        did = engaged_so if prefix else None
        with torch.inference_mode():
            wanted = whole(**read, engaged=did)
            past = whole.vectors(read.pop("past"), SIZES.past, did)
            assert past.shape == (50, SIZES.past * SIZES.width)
            torch.testing.assert_close(KeptPast(whole).eval()(**read, past=past), wanted, atol=1e-6, rtol=0)
            candidate = whole.tweets(read.pop("tokens"))
            kept = KeptTweets(whole).eval()(candidate, past, **read)
            torch.testing.assert_close(kept, wanted, atol=1e-6, rtol=0)

    def test_lists_of_a_request(self) -> None:
        named = {name: its.max_length for name, its in inputs(SIZES).items()}
        assert len(named) == 1 + SIZES.past + 2 + len(TARGETS)
        assert named["text_tokens"] == named["text_tokens_hist_1"] == SIZES.tokens
        assert named["mask_hist"] == named["like_hist"] == SIZES.past
