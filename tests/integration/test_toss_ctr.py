"""The ad click ensemble as its command runs it: trained, exported, served, compared with the training libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tristage.client.golden import TOLERANCE

ROOT = Path(__file__).parents[2]
NETS = {"mlp", "xdeepfm", "dcnv3", "wide_deep_projected", "wide_deep_whole", "wide_deep_keras"}


@pytest.mark.slow
@pytest.mark.xdist_group("toss_ctr")
def test_36_models_of_ten_folds_are_one_ensemble() -> None:
    # an appended path comes behind what is installed, which is what is tested
    script = (
        f"import sys; sys.path.append({str(ROOT)!r}); sys.modules.setdefault('triton', None); "
        "from examples.toss_ctr.command import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--seconds", "0", "--json"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert (found["folds"], found["models"]) == (10, 36)
    weights = found["weights"]
    assert len(weights) == 36
    assert set(weights) >= NETS
    assert sum(weights.values()) == pytest.approx(1)
    weighed = sum(weight > 0 for weight in weights.values())
    assert 10 <= weighed < 36
    assert any(weights[net] for net in NETS)

    scores = found["out_of_fold"]
    assert scores["mean"]["score"] < scores["climbed"]["score"] == max(found["climbs"])
    assert scores["climbed"]["ap"] == pytest.approx(scores["calibrated"]["ap"])
    assert scores["calibrated"]["wll"] <= scores["climbed"]["wll"]

    climbed, every = found["served"]
    assert (climbed["layout"], climbed["workflows"], climbed["models"]) == ("fused", 10, weighed)
    assert (every["layout"], every["workflows"], every["models"]) == ("ensemble", 10, 36)
    for served in found["served"]:
        assert served["golden"] == 500
        assert served["awkward"] == 48
        assert 0 <= served["difference"] <= TOLERANCE
        assert served["scores"] == pytest.approx(served["offline"], abs=TOLERANCE)
