"""Packed forests on a device: equal to XGBoost and to the engine in C; walked by torch, and by the kernel of a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import treelite
import xgboost

from tristage.export.forest.to_engine import Member, pack
from tristage.serving.device.forest import DeviceForest
from tristage.serving.device.walk import walk_with_torch
from tristage.serving.forest import ForestEngine, ForestError

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / ".kernels"
WIDTH = 7
CPU = torch.device("cpu")
AWKWARD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, 1e-45, -1e-45, 1, -1], np.float32)


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, WIDTH)).astype(np.float32)
    strange = random.random(rows.shape) < 0.2
    rows[strange] = random.choice(AWKWARD, strange.sum())
    return rows


def train(seed: int = 0, rounds: int = 30, **options: Any) -> xgboost.Booster:
    rows = rows_of(800, seed)
    rows[np.isinf(rows)] = 0  # which XGBoost does not train on
    labels = options.pop("labels", (np.nan_to_num(rows[:, 0]) > 0.1).astype(np.float32))
    options = {"objective": "binary:logistic", "nthread": 1, "seed": seed, "min_child_weight": 0, **options}
    return xgboost.train(options, xgboost.DMatrix(rows, labels), rounds)


def from_xgboost(booster: xgboost.Booster) -> Any:
    return treelite.frontend.from_xgboost(booster)


def opened(folder: Path, members: Sequence[Member]) -> tuple[DeviceForest, ForestEngine]:
    path = folder / "packed.forest"
    path.write_bytes(pack(members, WIDTH))
    return DeviceForest.open(path, CPU), ForestEngine(path)


def agree(folder: Path, members: Sequence[Member], expected: Any = None) -> None:
    device, engine = opened(folder, members)
    assert (device.features, device.outputs, device.groups) == (WIDTH, engine.outputs, engine.groups)
    for count in (0, 1, 3, 400):
        rows = rows_of(count, count)
        groups = np.random.default_rng(1).integers(-1, engine.groups + 1, count) if engine.groups > 1 else None
        made = device.predict(torch.from_numpy(rows), None if groups is None else torch.from_numpy(groups)).numpy()
        assert made.dtype == np.float32
        if groups is not None:
            groups[groups == engine.groups] = -1  # the engine takes no number that is too high
        np.testing.assert_allclose(made, engine.predict(rows, groups), atol=1e-6, rtol=1e-6)
        if expected is not None and count:
            np.testing.assert_allclose(made, expected(rows).reshape(made.shape), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("depth", range(1, 13))
def test_trees_of_every_depth(depth: int, tmp_path: Path) -> None:
    booster = train(depth, max_depth=depth)
    agree(tmp_path, [Member(from_xgboost(booster))], booster.inplace_predict)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "reg:squarederror", "base_score": 10},
        {"objective": "binary:logistic", "base_score": 0.03},
        {"objective": "binary:logitraw"},
        {"objective": "count:poisson"},
        {"objective": "multi:softprob", "num_class": 3, "labels": np.arange(800) % 3},
        {"objective": "binary:logistic", "rounds": 0, "base_score": 0.2},
    ],
)
def test_every_objective(options: dict[str, Any], tmp_path: Path) -> None:
    booster = train(3, **{"max_depth": 6, **options})
    agree(tmp_path, [Member(from_xgboost(booster))], booster.inplace_predict)


def test_bags_targets_and_groups(tmp_path: Path) -> None:
    models = [from_xgboost(train(seed, max_depth=4 + 3 * (seed % 3))) for seed in range(6)]
    agree(tmp_path, [Member(model, number % 2, 1 / 3) for number, model in enumerate(models)])
    agree(tmp_path, [Member(model, number % 2, group=number // 2) for number, model in enumerate(models)])


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "packed.forest"
    whole = pack([Member(from_xgboost(train()))], WIDTH)
    for data in (b"", whole[:1000], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        path.write_bytes(data)
        with pytest.raises(ForestError, match="packed forest|cannot be opened"):
            DeviceForest.open(path, CPU)


# In a process of its own: beside TensorFlow, the language's compiler ends the process
_KERNEL = """
import json, sys
from pathlib import Path
sys.path.append(sys.argv[2])
import numpy as np, torch
from tristage.serving.device.forest import DeviceForest
from tristage.serving.device.kernel import walk_with_kernel
from tristage.serving.device.walk import walk_with_torch
off = {}
for path in sorted(Path(sys.argv[1]).glob("*.forest")):
    forest = DeviceForest.open(path, torch.device("cpu"))
    for count in (1, 3, 300):
        rows = torch.from_numpy(np.load(sys.argv[1] + "/rows.npy")[:count])
        groups = torch.arange(count) % (forest.groups + 2) - 1 if forest.groups > 1 else None
        ranks = forest.searches.ranks(rows)
        wanted = walk_with_torch(forest.trees, ranks)
        if groups is not None:
            wanted = torch.where(forest.trees.group[:, None] == groups[None, :], wanted, 0.0)
        off[f"{path.stem} {count}"] = (walk_with_kernel(forest.trees, ranks, groups) - wanted).abs().max().item()
print(json.dumps(off))
"""

_COMPILE = """
import json, sys
sys.path.append(sys.argv[2])
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tristage.serving.device.kernel import _walk
names = "ranks groups chunks uppers units leaves following roots sums rows stride".split()
kinds = "*i16 *i64 *i32 *i32 *i32 *fp32 *i64 *i64 *fp64 i32 i32".split()
constants = ("grouped", "linked", "abreast", "at_once")
made = []
for compute in (80, 90):
    for values in ((False, False, 1, 256), (True, False, 256, 1), (False, True, 4, 64), (True, True, 1, 256)):
        signature = dict(zip(names, kinds)) | dict.fromkeys(constants, "constexpr")
        fixed = dict(zip(constants, values))
        if values[-1] == 1:  # what is 1 is compiled in
            signature |= {"rows": "constexpr", "stride": "constexpr"}
            fixed |= {"rows": 1, "stride": 1}
        source = ASTSource(_walk, signature, fixed)
        made.append(len(triton.compile(source, target=GPUTarget("cuda", compute, 32)).asm["cubin"]))
print(json.dumps(made))
"""


def with_kernels(script: str, folder: Path, **variables: str) -> Any:
    """What a script prints, in a process that has the language of kernels."""
    if not (KERNELS / "triton").is_dir():
        pytest.skip("`make kernels` brings the language that the kernel is written in")
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(KERNELS)],
        env={**os.environ, "TRITON_CACHE_DIR": str(folder / "cache"), **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_kernel_walks_as_torch_does(tmp_path: Path) -> None:
    """The kernel, interpreted: the same sums as torch's operators make, which the tests above compare."""
    deep = [from_xgboost(train(seed, max_depth=11, rounds=6)) for seed in range(2)]
    flat = [from_xgboost(train(seed, max_depth=3 + 2 * seed, rounds=40)) for seed in range(3)]
    stacks = {
        "flat": [Member(model, number) for number, model in enumerate(flat)],
        "deep": [Member(model) for model in deep],
        "groups": [Member(model, group=number) for number, model in enumerate([*flat, *deep])],
    }
    for name, members in stacks.items():
        (tmp_path / f"{name}.forest").write_bytes(pack(members, WIDTH))
    np.save(tmp_path / "rows.npy", rows_of(300))
    off = with_kernels(_KERNEL, tmp_path, TRITON_INTERPRET="1")
    assert len(off) == 9
    assert max(off.values()) < 1e-12, off


def test_the_kernel_compiles_for_gpus(tmp_path: Path) -> None:
    """For an A100 and an H100, which takes no GPU."""
    assert all(size > 1000 for size in with_kernels(_COMPILE, tmp_path))


def test_the_walk_takes_rows_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, _ = opened(tmp_path, [Member(from_xgboost(train(max_depth=5)))])
    ranks = device.searches.ranks(torch.from_numpy(rows_of(100)))
    whole = walk_with_torch(device.trees, ranks)
    monkeypatch.setattr("tristage.serving.device.walk._TILE", 64)
    torch.testing.assert_close(walk_with_torch(device.trees, ranks), whole, rtol=0, atol=1e-12)
