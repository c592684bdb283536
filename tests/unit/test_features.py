"""Tables of features against NVTabular's join and pandas, and what becomes of them when they are exchanged."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost

from tristage.errors import ArtifactError, InputError, RepositoryError, StackError
from tristage.export import export
from tristage.export.feature_tables import find_tables, go_back, replace_table
from tristage.export.lower import lower
from tristage.export.stack_file import read_stack
from tristage.manifest import check_files, feature_tables, read_manifest
from tristage.serving.feature_files import CURRENT, check_tables
from tristage.serving.program import open_compiled
from tristage.stack import FeaturesStep, ForestStep, Stack

WIDE = ("age", "price", "taste0", "taste1")


def table(count: int = 50, seed: int = 0, text: bool = False) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    ids = np.arange(count) * 3 - 30
    price = draw.normal(size=count).astype(np.float32)
    price[::7] = np.nan
    price[1::9] = np.inf
    return pd.DataFrame(
        {
            "age": draw.integers(-5, 90, count),
            "user": [f"u{i}" for i in ids] if text else ids,
            "price": price,
            "taste": list(draw.normal(size=(count, 2)).astype(np.float32)),
        }
    )


def asked(text: bool = False) -> Any:
    ids = [-30, -27, 0, 3, 0, 1, 2**62, -(2**62), 117, 120]
    if text:
        return np.array([*(f"u{i}" for i in ids), "", "U3", "u3 ", None], object)
    return np.array(ids)


def stack(features: Any, folder: Path, text: bool = False, **more: Any) -> Stack:
    rows = pd.DataFrame({"user": asked(text), "x": np.arange(len(asked(text)), dtype=np.float32)})
    rows.to_parquet(folder / "golden.parquet")
    draw = np.random.default_rng(1)
    names = [f"user_features.{name}" for name in WIDE]
    train = xgboost.DMatrix(draw.normal(size=(200, 5)), draw.normal(size=200))
    steps = {
        "user_features": FeaturesStep(features, "user", **more),
        "trees": ForestStep(xgboost.train({"nthread": 1}, train, 4), reads=(*names, "x")),
    }
    outputs = {"y": "trees.y", **{name: f"user_features.{name}" for name in WIDE}}
    return Stack("shop", steps, outputs, ("y",), golden=folder / "golden.parquet")


def expected(features: pd.DataFrame, ids: Any) -> pd.DataFrame:
    """What pandas itself joins."""
    wide = features.drop(columns="taste")
    wide["taste0"], wide["taste1"] = zip(*features["taste"], strict=True)
    return pd.DataFrame({"user": ids}).merge(wide, on="user", how="left")[list(WIDE)]


def answers(repository: Path, ids: Any) -> pd.DataFrame:
    """What the layout fused answers."""
    from tristage.client.codec import encode

    signature = read_manifest(repository).signature
    tensors = dict(encode(pd.DataFrame({"user": ids, "x": np.float32(0)}), signature))
    made = open_compiled(repository / "shop_fused" / "1").run(tensors)
    return pd.DataFrame({name: made[name].reshape(-1) for name in WIDE})


@pytest.mark.parametrize("layout", ["ensemble", "fused"])
@pytest.mark.parametrize("text", [False, True])
def test_it_is_a_left_join(layout: str, text: bool, tmp_path: Path) -> None:
    features = table(text=text)
    made = export(stack(features, tmp_path, text), tmp_path / "made", layout=layout)
    assert made.parity is not None
    assert made.parity.differences["user_features"] == 0
    if layout == "fused":
        ids = asked(text)
        found, joined = answers(tmp_path / "made", ids), expected(features, ids)
        for name in WIDE:
            np.testing.assert_array_equal(found[name].to_numpy(float), joined[name].to_numpy(float))
    check_tables(tmp_path / "made")


def test_large_tables_and_one_row(tmp_path: Path) -> None:
    features = table(100_000)
    export(stack(features, tmp_path), tmp_path / "made", layout="fused")
    ids = np.array([-30, 299_967, 299_970, 5])
    for some in (ids, ids[:1]):
        found, joined = answers(tmp_path / "made", some), expected(features, some)
        for name in WIDE:
            np.testing.assert_array_equal(found[name].to_numpy(float), joined[name].to_numpy(float))


def test_a_table_is_exchanged_while_it_is_open(tmp_path: Path) -> None:
    first, second = table(seed=0), table(60, seed=1)
    export(stack(first, tmp_path), tmp_path / "made", layout="fused")
    repository = tmp_path / "made"
    opened = open_compiled(repository / "shop_fused" / "1")
    ids = asked()
    tensors = {"user": ids.reshape(-1, 1), "x": np.zeros((len(ids), 1), np.float32)}

    def same(features: pd.DataFrame) -> bool:
        made, joined = opened.run(tensors), expected(features, ids)
        return all(np.array_equal(made[n].reshape(-1), joined[n].to_numpy(float), equal_nan=True) for n in WIDE)

    def becomes(features: pd.DataFrame) -> None:
        deadline = time.monotonic() + 30
        while not same(features):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    assert same(first)
    replaced = replace_table(repository, "user_features", second, partial(lower))
    becomes(second)
    assert replaced.about.rows == 60
    check_files(repository, read_manifest(repository))
    check_tables(repository)
    assert go_back(repository, "user_features").about.rows == 50
    becomes(first)
    (tables,) = feature_tables(repository)
    (tables / CURRENT).write_text("gone\n")  # what cannot be opened changes nothing
    opened.run(tensors)
    time.sleep(0.2)
    assert same(first)
    with pytest.raises(RepositoryError, match="names the version 'gone', which is not there"):
        check_tables(repository)


def test_versions_are_kept_and_pruned(tmp_path: Path) -> None:
    repository = tmp_path / "made"
    export(stack(table(), tmp_path), repository)
    for seed in range(1, 5):
        replace_table(repository, "user_features", table(seed=seed), partial(lower))
    (found,) = find_tables(repository)
    assert len(found.before) == 2
    assert not [path for path in found.folder.iterdir() if path.name.startswith(".")]
    export(stack(table(), tmp_path), repository, overwrite=True)
    with pytest.raises(InputError, match="has no version before"):
        go_back(repository, "user_features")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.drop(columns="age"), "other features than the one that is served .age."),
        (lambda t: t.assign(age=t["age"].astype(np.float32)), "other features than the one that is served .age."),
        (lambda t: t.assign(user=[str(i) for i in t["user"]]), "the table's ids are text, and a request's are int64"),
        (lambda t: t.drop(columns="user"), "has no column user"),
    ],
)
def test_another_kind_of_table_is_refused(change: Any, error: str, tmp_path: Path) -> None:
    export(stack(table(), tmp_path), tmp_path / "made")
    before = find_tables(tmp_path / "made")
    with pytest.raises(ArtifactError, match=error):
        replace_table(tmp_path / "made", "user_features", change(table()), partial(lower))
    assert find_tables(tmp_path / "made") == before
    with pytest.raises(InputError, match="no table of features of a step items; it has user_features"):
        replace_table(tmp_path / "made", "items", table(), partial(lower))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.rename(columns={"user": "id"}), "has no column user; say with ids which of its columns"),
        (lambda t: pd.concat([t, t[:1]]), "has 1 ids that stood in a row before, such as -30"),
        (lambda t: t.assign(user=t["user"].where(t["user"] > 0)), "rows without an id"),
        (lambda t: t[["user"]], "holds no features"),
        (lambda t: t.assign(age="old"), "has object in age; features are numbers"),
        (lambda t: t.assign(taste=[[1.0]] * 49 + [[1.0, 2.0]]), "lists of 1 to 2 numbers in taste"),
        (lambda t: t.assign(user=[str(i) for i in t["user"]]), "the table's ids are text, and a request's are int64"),
    ],
)
def test_tables_that_cannot_be_served(change: Any, error: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=error):
        export(stack(change(table()), tmp_path), tmp_path / "made")


def test_from_a_file_and_from_arrow_and_under_another_name(tmp_path: Path) -> None:
    renamed = table().rename(columns={"user": "id"})
    renamed.to_parquet(tmp_path / "users.parquet")
    digests = []
    for number, source in enumerate((renamed, pa.Table.from_pandas(renamed), tmp_path / "users.parquet")):
        made = export(stack(source, tmp_path, ids="id"), tmp_path / f"made{number}", layout="fused")
        digests.append({path.name for path in feature_tables(made.path)})
    assert digests[0] == digests[1] == digests[2]
    text = """
name: shop
golden: golden.parquet
steps:
  user_features: {features: users.parquet, key: user, ids: id}
  both: {mean: [user_features]}
outputs: {age: user_features.age}
"""
    (tmp_path / "stack.yaml").write_text(text)
    with pytest.raises(StackError, match="nobody reads step both"):
        read_stack(tmp_path / "stack.yaml")
    (tmp_path / "stack.yaml").write_text(text.replace("  both: {mean: [user_features]}\n", ""))
    assert read_stack(tmp_path / "stack.yaml").steps["user_features"] == FeaturesStep(
        tmp_path / "users.parquet", "user", "id"
    )
    export(read_stack(tmp_path / "stack.yaml"), tmp_path / "yaml")


def test_ids_of_an_earlier_step(tmp_path: Path) -> None:
    """What a step looks up may be an id that another has looked up."""
    draw = np.random.default_rng(0)
    users = pd.DataFrame({"user": np.arange(9), "city": draw.integers(0, 4, 9).astype(np.float64)})
    cities = pd.DataFrame({"city": np.arange(3.0), "size": [2**53 - 1, 0.1, 7]})
    pd.DataFrame({"user": np.arange(12)}).to_parquet(tmp_path / "golden.parquet")
    steps: Mapping[str, Any] = {
        "users": FeaturesStep(users, "user"),
        "cities": FeaturesStep(cities, "users.city"),
    }
    made = export(
        Stack("s", steps, {"size": "cities.size"}, golden=tmp_path / "golden.parquet"),
        tmp_path / "made",
        layout="fused",
    )
    tensors = {"user": np.arange(12).reshape(-1, 1)}
    found = open_compiled(made.path / "s_fused" / "1").run(tensors)["size"].reshape(-1)
    joined = pd.DataFrame({"user": np.arange(12)}).merge(users, how="left").merge(cities, how="left", on="city")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, joined["size"])


def test_the_container_s_backends_have_none(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="step user_features looks up features that may be exchanged"):
        export(stack(table(), tmp_path), tmp_path / "made", target="ngc-cpu")


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    manifests = [export(stack(table(), tmp_path), tmp_path / name).manifest for name in ("a", "b")]
    assert json.dumps(dict(manifests[0].files)) == json.dumps(dict(manifests[1].files))
    names = [sorted(p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n).rglob("*")) for n in ("a", "b")]
    assert names[0] == names[1]
