"""MicroParade as its command runs it: trained, exported, served, compared with PyTorch and NVTabular."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tristage.client.golden import TOLERANCE

ROOT = Path(__file__).parents[2]
# average precision of an answer that knows nothing: the share of rows with the engagement
SHARES = {"reply": 0.33, "retweet": 0.28, "retweet_with_comment": 0.18, "like": 0.52}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    # an appended path comes behind what is installed, which is what is tested
    script = (
        f"import sys; sys.path.append({str(ROOT)!r}); sys.modules.update(triton=None, tensorflow=None); "
        "from examples.microparade.command import main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # its nets are small, and other tests run beside it
    )


@pytest.mark.slow
def test_what_is_served_equals_the_training_libraries() -> None:
    done = command("--seconds", "0", "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout)
    assert [result["name"] for result in results] == ["single", "multi"]
    for result in results:
        assert result["golden"] == 400
        assert result["awkward"] >= 60
        assert 0 <= result["difference"] <= TOLERANCE
        assert set(result["scores"]) == set(SHARES)
        assert all(result["scores"][target] > share + 0.05 for target, share in SHARES.items())


def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    wrong = {
        ("double",): "there is no system double; systems are single, multi",
        ("--past", "0"): "there is room for one past tweet at least",
    }
    for arguments, said in wrong.items():
        done = command(*arguments)
        assert done.returncode == 2
        assert said in done.stderr
