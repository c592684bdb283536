"""The RecSys 2021 example's rows, metrics and wiring; nothing here trains."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from examples.recsys2021 import AUTHOR_CUTS, MENTION, TARGETS
from examples.recsys2021.metrics import average_precision, grouped_scores, relative_cross_entropy
from examples.recsys2021.rows import FIRST_SECOND, Rows, make_rows, token_classes
from examples.recsys2021.sizes import SMALL

ROOT = Path(__file__).parents[2]
TINY = replace(SMALL, rows_per_week=3_000, users=600, vocabulary=2_000)
FIELDS = [
    "text_tokens",
    "hashtags",
    "tweet_id",
    "present_media",
    "present_links",
    "present_domains",
    "tweet_type",
    "language",
    "tweet_timestamp",
    *(
        f"{side}_{field}"
        for side in "ab"
        for field in ("user_id", "follower_count", "following_count", "is_verified", "account_creation")
    ),
    "a_follows_b",
]


@pytest.fixture(scope="module")
def rows() -> Rows:
    return make_rows(TINY)


def test_a_row_has_the_challenges_20_fields_and_four_targets(rows: Rows) -> None:
    assert len(FIELDS) == 20
    assert rows.table.column_names == [*FIELDS, *TARGETS]
    assert rows.table.num_rows == 4 * TINY.rows_per_week


def test_the_same_sizes_give_the_same_bytes_and_another_seed_does_not(rows: Rows) -> None:
    assert _bytes(make_rows(TINY).table) == _bytes(rows.table)
    assert _bytes(make_rows(replace(TINY, seed=TINY.seed + 1)).table) != _bytes(rows.table)


def test_nulls_and_lists_of_every_length_are_real(rows: Rows) -> None:
    nulls = {name: rows.table[name].null_count for name in rows.table.column_names if rows.table[name].null_count}
    assert set(nulls) == {"hashtags", "present_links", "present_domains", "language", "b_following_count"}
    assert max(nulls.values()) < 0.03 * rows.table.num_rows
    tags = _lists(rows, "hashtags")
    assert {len(values) for values in tags} >= {0, 1, 2, TINY.list_hashtags, TINY.list_hashtags + 1}
    assert "" not in {tag for values in tags for tag in values}
    links, domains = (list(map(len, _lists(rows, name))) for name in ("present_links", "present_domains"))
    assert links == domains
    assert set(links) == {0, 1, 2}


def test_texts_are_tokens_of_the_vocabulary_with_tabs_between(rows: Rows) -> None:
    texts = [list(map(int, tokens)) for tokens in _lists(rows, "text_tokens")]
    lengths = list(map(len, texts))
    assert 1 <= min(lengths) < TINY.tokens < max(lengths)
    assert {min(map(min, texts)), TINY.vocabulary} == {1, len(token_classes(TINY))}
    assert max(map(max, texts)) < TINY.vocabulary


def test_whom_a_text_mentions_moves_replies(rows: Rows) -> None:
    mentions = np.array([tokens.count(str(MENTION)) for tokens in _lists(rows, "text_tokens")])
    assert np.bincount(mentions) / len(mentions) == pytest.approx([0.6, 0.25, 0.1, 0.05], abs=0.03)
    reply = rows.table["reply"].to_numpy()
    assert reply[mentions >= 2].mean() > 1.3 * reply[mentions == 0].mean()


def test_four_weeks_the_last_split_into_validation_and_test(rows: Rows) -> None:
    seconds = rows.table["tweet_timestamp"].to_numpy()
    assert np.all(np.diff(seconds) >= 0)
    assert np.array_equal((seconds - FIRST_SECOND) // (7 * 86_400), rows.week)
    assert np.array_equal(rows.validation | rows.test, rows.week == 3)
    assert not np.any(rows.validation & rows.test)


def test_engagements_have_the_wished_rates_and_drift_in_week_4(rows: Rows) -> None:
    targets = np.stack([rows.table[target].to_numpy() for target in TARGETS], 1)
    past, new = targets[rows.week < 3].mean(0), targets[rows.week == 3].mean(0)
    assert past == pytest.approx([0.06, 0.12, 0.04, 0.40], abs=0.015)
    assert new[0] > past[0]
    assert new[3] < past[3]


def test_every_author_group_is_there(rows: Rows) -> None:
    groups = np.bincount(np.digitize(rows.table["a_follower_count"].to_numpy(), AUTHOR_CUTS), minlength=5)
    assert groups.min() > 0.05 * rows.table.num_rows


def test_average_precision_equals_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    for decimals in (1, 2, 9):  # few decimals make many equal scores
        truth, score = draw.random(2_000) < 0.1, np.round(draw.random(2_000), decimals)
        assert average_precision(truth, score) == pytest.approx(
            sklearn.average_precision_score(truth, score), abs=1e-12
        )


def test_average_precision_without_positives_is_nan() -> None:
    assert np.isnan(average_precision(np.zeros(5), np.arange(5.0)))
    assert average_precision(np.ones(5), np.zeros(5)) == 1.0


def test_relative_cross_entropy_is_0_for_the_base_rate_and_near_100_for_the_truth() -> None:
    truth = (np.random.default_rng(0).random(1_000) < 0.3).astype(float)
    assert relative_cross_entropy(truth, np.full(1_000, truth.mean())) == pytest.approx(0.0, abs=1e-9)
    assert relative_cross_entropy(truth, truth) == pytest.approx(100.0, abs=1e-6)
    assert relative_cross_entropy(truth, 1 - truth) < -1_000


def test_scores_average_groups_and_targets() -> None:
    draw = np.random.default_rng(0)
    truth, score = (draw.random((600, 4)) < 0.2).astype(np.int8), draw.random((600, 4))
    group = draw.integers(0, 5, 600)
    scores = grouped_scores(truth, score, group)
    by_hand = np.mean([average_precision(truth[group == at, 2], score[group == at, 2]) for at in range(5)])
    assert scores["ap"]["quote"] == pytest.approx(by_hand)
    assert scores["rce"]["average"] == pytest.approx(np.mean([scores["rce"][target] for target in TARGETS]))


def test_wiring_reads_what_the_stack_file_says() -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("dask")
    from examples.recsys2021.features import padded
    from examples.recsys2021.sizes import PAPER
    from examples.recsys2021.wiring import expand, reads

    columns = ["b", "n_x", "c_y", "n_z"]
    assert expand("features.n_*", columns) == ["n_x", "n_z"]
    assert expand(["features.c_y", "features.n_*"], columns) == ["c_y", "n_x", "n_z"]
    for sizes in (SMALL, PAPER):
        assert reads(sizes, "nn3")["numeric"] == ["features.n_*", "features.i_*"]
        assert reads(sizes, "nn1")["a_user"] == "features.a_user"
    assert expand([reads(PAPER, "nn3")["a_user"]], ["a_user", "nn3_a_user"]) == ["nn3_a_user"]
    lists = pd.Series([np.array([1, 2, 3]), np.array([], dtype=np.int64), np.array([4])])
    assert padded(lists, 2).tolist() == [[1, 2], [0, 0], [4, 0]]


@pytest.mark.slow
def test_training_leaves_a_folder_that_names_only_what_it_holds(tmp_path: Path) -> None:
    for needed in ("nvtabular", "xgboost", "keras", "torch", "yaml"):
        pytest.importorskip(needed)
    import xgboost
    import yaml

    from examples.recsys2021.train import STAGE1, train

    few: dict[str, Any] = {f"xgb{at}_trees": (3, 3, 3, 3) for at in range(1, 6)}
    sizes = replace(
        TINY,
        rows_per_week=1_500,
        golden_rows=100,
        bert=16,
        nn2_rows=512,
        nn3_rows=512,
        **few,
    )
    folder = tmp_path / "artifacts"
    folder.mkdir()
    (folder / "old").touch()
    trained = train(sizes, folder)
    assert not trained.reused
    assert set(trained.scores) == {*STAGE1, "xgb4", "xgb5", "stack"}
    assert not (folder / "old").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"artifacts", ".artifacts.lock"}

    stack = yaml.safe_load((folder / "stack.yaml").read_text())
    numbers = {"bag": range(3), "group": range(5)}
    for step in stack["steps"].values():
        for kind in ("workflow", "net"):
            assert kind not in step or (folder / step[kind]).exists()
        pattern = step.get("forest", "")
        label = next((name for name in numbers if f"{{{name}}}" in pattern), None)
        for target in stack["targets"] if pattern else []:
            for number in numbers[label] if label else [0]:
                assert (folder / pattern.format(target=target, **{label or "": number})).is_file()
    booster = xgboost.Booster()
    booster.load_model(folder / "xgb4" / "like-2.ubj")
    assert booster.feature_names[-24:] == [f"{model}.{target}" for model in STAGE1 for target in TARGETS]

    again = train(sizes, folder)
    assert again.reused
    assert again.scores == trained.scores


def test_every_known_user_reads_and_writes_in_the_second_week() -> None:
    sizes = replace(TINY, known_users=500)
    rows = make_rows(sizes)
    assert np.bincount(rows.week).tolist() == [3_000, 3_500, 3_000, 3_000]
    second = rows.table.filter(rows.week == 1)
    for side in ("a_user_id", "b_user_id"):
        assert len(second[side].unique()) >= 500
    seconds = rows.table["tweet_timestamp"].to_numpy()
    assert np.all(np.diff(seconds) >= 0)


def test_the_papers_forests_read_as_many_columns_as_the_originals() -> None:
    pytest.importorskip("xgboost")
    from examples.recsys2021.forests import OWN_KINDS, PREFIXES, columns_of
    from examples.recsys2021.sizes import PAPER

    keyed = {"x2_": 44, "x3_": 13, "x4_": 24, "x5_": 44, "rev_": 8, "ce_": 12, "TE_": 40, "s_": 20}
    assert set(keyed) <= {prefix for prefixes in PREFIXES.values() for prefix in prefixes}
    made = [f"{prefix}{at}" for prefix, count in keyed.items() for at in range(count)]
    assert {step: len(columns_of(step, made, True)) for step in OWN_KINDS} == {
        "xgb1": 40,
        "xgb2": 44,
        "xgb3": 33,
        "xgb4": 57,
        "xgb5": 104,
    }
    met = {
        1: PAPER.xgb1_bags * sum(PAPER.xgb1_trees),
        2: sum(PAPER.xgb2_trees),
        3: sum(PAPER.xgb3_trees),
        4: PAPER.xgb4_bags * sum(PAPER.xgb4_trees),
        5: PAPER.xgb5_bags * sum(PAPER.xgb5_trees),
    }
    assert met == {1: 3000, 2: 2602, 3: 2659, 4: 4482, 5: 3000}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_training_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    """At the paper's wiring: killed once when features are made, and once when a forest is, it trains nothing twice."""
    for needed in ("nvtabular", "xgboost", "keras", "torch", "yaml"):
        pytest.importorskip(needed)
    import xgboost

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _train(whole).wait() == 0
    work = tmp_path / ".killed-training"
    kept: dict[Path, int] = {}
    for until in ("made.arrow", "xgb1/*.ubj"):
        process = _train(killed)
        deadline = time.monotonic() + 300
        while not any(work.glob(until)):
            assert process.poll() is None, "it ended, or failed, before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not killed.exists()
        assert {file: file.stat().st_mtime_ns for file in kept} == kept
        done = (*work.glob("*.arrow"), *work.glob("*.pt2"), *work.glob("*.keras"), *work.glob("xgb*/[!.]*.ubj"))
        kept = {file: file.stat().st_mtime_ns for file in done}
    assert _train(killed).wait() == 0
    assert not work.exists()
    same = {work / name: killed / name for name in (file.relative_to(work) for file in kept) if name.suffix != ".arrow"}
    assert {file: there.stat().st_mtime_ns for file, there in same.items()} == {file: kept[file] for file in same}
    assert (killed / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()
    assert (killed / "fingerprint").read_bytes() == (whole / "fingerprint").read_bytes()
    forests = sorted(file.relative_to(whole) for file in whole.glob("xgb*/*.ubj"))
    assert len(forests) == 12 + 4 + 20 + 12 + 12
    assert all((killed / name).read_bytes() == (whole / name).read_bytes() for name in forests)
    names = sorted(file.name for file in whole.iterdir())
    assert sorted(file.name for file in killed.iterdir()) == names
    assert {"past", "newer", "nn1-0.keras", "nn1-1.keras", "nn2.pt2", "nn3.pt2", "stack.yaml"} <= set(names)
    columns = {step: _features(xgboost, whole / step) for step in ("xgb1", "xgb2", "xgb3", "xgb4", "xgb5")}
    assert columns == {"xgb1": 70, "xgb2": 79, "xgb3": 68, "xgb4": 114, "xgb5": 154}


def _train(folder: Path) -> subprocess.Popen[bytes]:
    """Train the paper's stack in a process, with few rows and trees."""
    few = {f"xgb{at}_trees": (3, 3, 3, 3) for at in range(1, 6)}
    nets = {f"nn{at}_{what}": size for at in (1, 2, 3) for what, size in (("rows", 256), ("batch", 64))}
    sizes = {"rows_per_week": 1_500, "users": 900, "known_users": 700, "vocabulary": 2_000, "golden_rows": 100}
    script = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        f"sys.path.append({str(ROOT)!r})\n"
        "from examples.recsys2021.sizes import PAPER; from examples.recsys2021.train import train\n"
        f"train(replace(PAPER, bert=16, **{few | nets | sizes!r}), Path({str(folder)!r}))\n"
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _features(xgboost: Any, folder: Path) -> int:
    (file, *_) = sorted(folder.iterdir())
    return int(xgboost.Booster(model_file=file).num_features())


def _lists(rows: Rows, name: str) -> list[list[str]]:
    return [text.split("\t") if text else [] for text in rows.table[name].to_pylist()]


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
