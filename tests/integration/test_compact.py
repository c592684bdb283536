"""The compact examples as their command runs them: trained, exported, served, compared with the training libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tristage.client.golden import TOLERANCE

ROOT = Path(__file__).parents[2]
SYSTEMS = ("dlrm", "wide_deep", "dcn", "ncf", "gru_session", "transformer_session", "vae_cf", "four_stage")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    # an appended path comes behind what is installed, which is what is tested
    script = (
        f"import sys; sys.path.append({str(ROOT)!r}); sys.modules.setdefault('triton', None); "
        "from examples.compact.command import main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=540, check=False
    )


# half of them in a process each: what takes longest is to import the training libraries
@pytest.mark.slow
@pytest.mark.parametrize(
    "systems",
    [
        pytest.param(half, id="-".join(half), marks=pytest.mark.xdist_group(f"compact-{half[0]}"))
        for half in (SYSTEMS[::2], SYSTEMS[1::2])
    ],
)
def test_what_is_served_equals_the_training_libraries(systems: tuple[str, ...]) -> None:
    done = command(*systems, "--seconds", "0", "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout)
    assert [result["name"] for result in results] == list(systems)
    for result in results:
        assert result["golden"] == 400
        assert result["awkward"] >= 20
        assert 0 <= result["difference"] <= TOLERANCE
