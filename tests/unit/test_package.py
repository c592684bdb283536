"""What is installed: the wheel holds the tree, and the light parts stay light."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tristage
from tristage import errors

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "tristage": "",
    "export": "export/",
    "serving": "serving/",
    "client": "client/",
    "loadtest": "loadtest/",
    "gateway": "gateway/",
}
HEAVY = (
    *("torch", "tensorflow", "keras", "nvtabular", "merlin", "dask", "pandas", "onnx"),
    *("xgboost", "lightgbm", "catboost", "sklearn", "treelite", "daal4py"),
)


SOURCES = (".c", ".h", ".txt")  # of the engines, which are installed compiled


def _wheel(folder: Path, compiler: str | None = None) -> set[str]:
    """Names of the files in a wheel that is built into a folder."""
    command = [str(Path(sys.executable).with_name("uv")), "build", "--wheel", "--quiet", "-o", str(folder), str(ROOT)]
    env = os.environ if compiler is None else {**os.environ, "CC": compiler}
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=ROOT, env=env)
    (wheel,) = folder.glob("*.whl")
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def _tree() -> set[str]:
    return {
        f"tristage/{place}{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in SOURCES
    }


def test_the_installed_package_is_what_is_tested() -> None:
    assert "site-packages" in str(tristage.__file__), "run the tests with `make test`"


def test_the_wheel_holds_every_module_of_the_tree(tmp_path: Path) -> None:
    held = _wheel(tmp_path)
    compiled = {name for name in held if name.endswith(".so")}
    assert {name.split(".")[0] for name in compiled} == {
        "tristage/serving/backend/libtriton_tristage",
        "tristage/serving/columns/_columns",
        "tristage/serving/forest/_engine",
        "tristage/serving/recurrence/_layer",
    }
    assert held - compiled == _tree()


def test_without_a_compiler_all_but_the_engines_is_installed(tmp_path: Path) -> None:
    assert _wheel(tmp_path, compiler="/no/compiler") == _tree()
    script = "from tristage.serving.forest import available; print(available())"
    (wheel,) = tmp_path.glob("*.whl")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(wheel)!r}); {script}"],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "module",
    [
        "tristage.client",
        "tristage.loadtest",
        "tristage.gateway.app",
        "tristage.cli",
        "tristage.serving.runner",
        "tristage.serving.columns",
        "tristage.serving.forest",
        "tristage.serving.recurrence",
    ],
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ""


def test_the_command_line_starts_without_what_only_models_need() -> None:
    script = "import sys, tristage.cli; print(*sorted({'onnxruntime', 'onnx', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ""


def test_the_command_line_teaches() -> None:
    tristage_command = str(Path(sys.executable).with_name("tristage"))
    for command in ("", "export", "tune", "inspect", "serve", "gateway", "verify", "predict", "loadtest", "compare"):
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


@pytest.mark.xdist_group("kept together")
def test_tests_of_a_group_are_kept_together(request: pytest.FixtureRequest) -> None:
    """Those of a group share servers, ports and environments; some versions of pytest take no groups from xdist."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("tests are not run side by side")
    assert request.node.nodeid.endswith("@kept together")
