"""What all tests share: the tiny stack, trained and exported once for every worker of a run."""

from __future__ import annotations

import fcntl
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
# behind what is installed, so that `examples` can be imported and the installed tristage is what is tested
sys.path += [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# OpenAI's triton, which PyPI's torch brings: its LLVM ends a process that has loaded TensorFlow's
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ran:
    """What a command line printed, and how it ended."""

    code: int
    out: str
    err: str


def run_cli(*arguments: object, stdin: str | None = None, timeout: float = 180) -> Ran:
    """Run the `tristage` command as a user would."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("tristage")), *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def cli() -> Callable[..., Ran]:
    """The `tristage` command."""
    return run_cli


@pytest.fixture(scope="session")
def net_models() -> Any:
    """The nets that recommenders are made of: tests/net_models.py, which imports torch and Keras."""
    return importlib.import_module("net_models")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every worker of this run sees."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _once(path: Path, make: Callable[[], None]) -> Path:
    """Make `path` unless another worker already has."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make()
    return path


@pytest.fixture(scope="session")
def tiny_stack(shared: Path) -> Path:
    """A folder of trained artifacts with a stack.yaml, of every kind of step; not to be changed."""

    def make() -> None:
        script = Path(__file__).with_name("tiny_stack.py")
        subprocess.run([sys.executable, str(script), str(shared / "tiny")], check=True, timeout=300, cwd=shared)

    return _once(shared / "tiny", make)


@pytest.fixture(scope="session")
def tiny_repository(shared: Path, tiny_stack: Path) -> Path:
    """The tiny stack, exported by the command line; not to be changed."""

    def make() -> None:
        done = run_cli("export", "--trust", tiny_stack / "stack.yaml", "-o", shared / "tiny_repository")
        assert done.code == 0, done.err

    return _once(shared / "tiny_repository", make)
