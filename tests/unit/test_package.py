"""What is installed: the wheel holds the tree, and the light parts stay light."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tristage
from tristage import errors

ROOT = Path(__file__).parents[2]
FOLDERS = {"tristage": "", "export": "export/", "serving": "serving/", "client": "client/", "loadtest": "loadtest/"}
HEAVY = (
    *("torch", "tensorflow", "keras", "nvtabular", "merlin", "dask", "pandas", "onnx"),
    *("xgboost", "lightgbm", "catboost", "sklearn", "treelite"),
)


def _uv(*arguments: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([str(uv), *arguments], check=True, capture_output=True, timeout=300, cwd=ROOT)


def test_the_installed_package_is_what_is_tested() -> None:
    assert "site-packages" in str(tristage.__file__), "run the tests with `make test`"


def test_the_wheel_holds_every_module_of_the_tree(tmp_path: Path) -> None:
    _uv("build", "--wheel", "--quiet", "-o", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tree = {
        f"tristage/{place}{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == tree


@pytest.mark.parametrize("module", ["tristage.client", "tristage.loadtest", "tristage.cli", "tristage.serving.runner"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ""


def test_the_command_line_teaches() -> None:
    tristage_command = str(Path(sys.executable).with_name("tristage"))
    for command in ("", "export", "inspect", "serve", "verify", "predict", "loadtest"):
        arguments = [tristage_command, *([command] if command else []), "--help"]
        done = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=60)
        assert "Usage" in done.stdout


def test_errors_are_one_tree_with_exit_codes() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.TristageError)
        assert kind.exit_code in (1, 2, 3)
        assert kind.__doc__
    assert errors.ParityError.exit_code == 1
    assert errors.StackError.exit_code == 2
    assert errors.ServerUnavailable.exit_code == 3
