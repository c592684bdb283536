"""NVTabular's hashes: what it makes of a value on a CPU depends on the row's number, so they are refused by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tristage.errors import ArtifactError
from tristage.stack import ListInput

nvt = pytest.importorskip("nvtabular")
ops = nvt.ops

sys.path.append(str(Path(__file__).parent))
from test_workflow_compiler import FIT, NEW, _own_folder, agree, fit, serve  # noqa: E402, F401

SAME = pd.DataFrame(
    {
        "whole": np.full(64, 5, np.int64),
        "small": np.full(64, 5, np.int32),
        "number": np.full(64, 5.0),
        "word": ["five"] * 64,
        "null": np.full(64, np.nan),
    }
)


class TestWhatNVTabularDoes:
    """The reason for the refusals. If one of these fails, NVTabular changed, and hashes can be compiled."""

    @pytest.mark.parametrize("column", list(SAME))
    def test_one_value_falls_into_many_buckets(self, column: str) -> None:
        answers = fit([column] >> ops.HashBucket(100), SAME).transform(SAME.copy())[column]
        assert answers.nunique() > 20

    def test_a_row_that_moves_falls_into_another_bucket(self) -> None:
        workflow = fit(["whole", "word"] >> ops.HashBucket(1_000_000), SAME)
        together = workflow.transform(SAME.copy())
        alone = [workflow.transform(SAME.iloc[[row]].reset_index(drop=True)).iloc[0] for row in range(3)]
        assert [row.tolist() for row in alone] == [together.iloc[0].tolist()] * 3
        assert together.iloc[1].tolist() != together.iloc[0].tolist()

    def test_crosses_too(self) -> None:
        answers = fit([["whole", "small", "word"]] >> ops.HashedCross(100), SAME).transform(SAME.copy())
        assert answers["whole_X_small_X_word"].nunique() > 20

    def test_crosses_of_equal_values_cancel_out(self) -> None:
        # the hashes are joined by exclusive or
        answers = fit([["whole", "small"]] >> ops.HashedCross(100), SAME).transform(SAME.copy())
        assert set(answers["whole_X_small"]) == {0}

    @pytest.mark.parametrize("column", ["whole", "small", "word"])
    def test_unseen_categories_too(self, column: str) -> None:
        seen = pd.DataFrame({column: SAME[column].iloc[:1].map(lambda value: value * 2)})
        workflow = fit([column] >> ops.Categorify(num_buckets=100, max_size=200), seen)
        answers = workflow.transform(SAME[[column]].copy())[column]
        assert answers.nunique() > 20
        assert answers.between(2, 101).all()


class TestRefusals:
    @pytest.mark.parametrize("column", ["word", "id", "id32", "floating"])
    def test_hash_bucket(self, column: str) -> None:
        with pytest.raises(ArtifactError, match=r"HashBucket on a CPU .*row's number.*use Categorify with max_size.*%"):
            serve(fit([column] >> ops.HashBucket(4), FIT))

    def test_hashed_cross(self) -> None:
        with pytest.raises(
            ArtifactError, match=r'HashedCross on a CPU .*row.s number.*Categorify\(encode_type="combo"'
        ):
            serve(fit([["id", "id32"]] >> ops.HashedCross(4), FIT))

    @pytest.mark.parametrize(
        "options",
        [
            {"num_buckets": 3, "max_size": 6},
            {"num_buckets": 3, "freq_threshold": 2},
            {"num_buckets": {"id": 3}},
            {"num_buckets": 3, "encode_type": "combo"},
        ],
        ids=str,
    )
    def test_categorify(self, options: dict[str, Any]) -> None:
        named = r"Categorify\(id\): num_buckets hashes unseen categories.*row's number.*leave num_buckets out"
        with pytest.raises(ArtifactError, match=named):
            serve(fit(["id"] >> ops.Categorify(**options), FIT))


class TestWhatToDoInstead:
    def test_remainder(self) -> None:
        served = agree(fit(["id", "n32"] >> ops.LambdaOp(lambda column: column % 7), FIT), FIT, NEW)
        assert served.dtypes == {"id": "int64", "n32": "int32"}

    def test_vocabulary_of_a_limited_size(self) -> None:
        agree(fit(["word", "id"] >> ops.Categorify(max_size=5), FIT), FIT, NEW)
        agree(fit([["id", "u"]] >> ops.Categorify(encode_type="combo", max_size=5), FIT), FIT, NEW)

    def test_lists(self) -> None:
        frame = pd.DataFrame({"ids": [[5, 6], [5], [], [7, 5, 6]]})
        new = pd.DataFrame({"ids": [[7, 8], [5, 6, -1]]})
        agree(fit(["ids"] >> ops.Categorify(max_size=4), frame), new, lists={"ids": ListInput(3)})
