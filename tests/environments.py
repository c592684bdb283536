"""Python environments beside the one under test, for what other versions of a library wrote or read.

They are made with uv, once, under .cache/environments, which git ignores.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache" / "environments"


def python_with(*requirements: str) -> Path:
    """The interpreter of an environment that holds exactly these requirements (and what they need), made on first use.

    Args:
        requirements: as pip takes them; pin them, since the environment is named after them and kept.
    """
    folder = CACHE / "+".join(sorted(requirements)).replace("/", "_")
    python = folder / "bin" / "python"
    CACHE.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            uv = str(Path(sys.executable).with_name("uv"))
            links = os.environ.get("PIP_FIND_LINKS")
            find = ["--find-links", *shlex.split(links)] if links else []
            subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
            install = [uv, "pip", "install", "--quiet", "--prerelease", "disallow", "--python", python, *find]
            subprocess.run([*install, *requirements], check=True, timeout=1200)
            (folder / "complete").touch()
    return python
