"""Finding the wheel's Triton, its command line and its environment."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tristage
from tristage.errors import ServerError
from tristage.serving import triton
from tristage.serving.triton import Ports, Triton, arguments, environment, find_libpython, find_triton

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def fake(tmp_path: Path) -> Triton:
    return Triton(
        binary=tmp_path / "bin" / "tritonserver",
        backends=tmp_path / "backends",
        caches=tmp_path / "caches",
        libraries=(tmp_path / "a", tmp_path / "b"),
        python=tmp_path / "python",
        start=tmp_path / "start",
        libpython=tmp_path / "libpython.so",
    )


def test_the_layout_is_complete_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = find_triton()
    assert os.access(found.binary, os.X_OK)
    backend = found.backends / "python"
    assert os.access(backend / "triton_python_backend_stub", os.X_OK)
    assert (backend / "triton_python_backend_stub").resolve().parent.name == PYTHON
    assert (backend / "libtriton_python.so").exists()
    assert (backend / "triton_python_backend_utils.py").exists()
    assert [path.name for path in (found.backends / "tristage").iterdir()] == ["libtriton_tristage.so"]
    assert PYTHON.removeprefix("3.") in found.libpython.name
    assert found.libpython.exists()
    assert (found.python / "python3").samefile(sys.executable)
    assert (found.start / "tristage.py").exists()
    assert "pytriton" not in sys.modules
    inode = backend.stat().st_ino
    assert find_triton() == found
    assert backend.stat().st_ino == inode
    assert len(list((tmp_path / "tristage").iterdir())) == 1


def test_a_broken_layout_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stub = find_triton().backends / "python" / "triton_python_backend_stub"
    stub.unlink()
    stub.symlink_to(tmp_path / "gone")
    find_triton()
    assert stub.exists()
    assert len(list((tmp_path / "tristage").iterdir())) == 1


def test_concurrent_starts_share_one_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: find_triton(), range(32)))
    assert len(found) == 1
    assert len(list((tmp_path / "tristage").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_replaced_by_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(triton.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(triton.tempfile, "tempdir", str(tmp_path))
    private = tmp_path / f"tristage-{os.getuid()}"
    assert private in find_triton().backends.parents
    assert private.stat().st_mode & 0o777 == 0o700


def test_a_guessable_folder_of_someone_else_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(triton.tempfile, "gettempdir", lambda: str(tmp_path))
    private = tmp_path / f"tristage-{os.getuid()}"
    private.mkdir()
    private.chmod(0o777)
    with pytest.raises(ServerError, match="not yours alone; set XDG_CACHE_HOME"):
        find_triton()


def test_without_the_wheel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"nvidia-pytriton is missing; .*tristage\[serve\]"):
        find_triton()


def test_a_missing_libpython_says_what_to_install() -> None:
    with pytest.raises(ServerError, match=f"libpythonzork.so.1.0 is not on .* apt install libpython{PYTHON}"):
        find_libpython("libpythonzork.so.1.0")


def test_libpython_is_found_where_the_loader_is_told_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libpythonzork.so.1.0").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    assert find_libpython("libpythonzork.so.1.0") == tmp_path / "libpythonzork.so.1.0"


def test_the_command_line_binds_where_told_and_never_shares_a_port(fake: Triton) -> None:
    argv = arguments(
        fake,
        Path("/models"),
        Path("/more"),
        host="127.0.0.1",
        ports=Ports(1, 2, 3),
        server_id="tristage-x",
        admin_key="k",
        repository_key="r",
        percentiles=False,
        traces=None,
    )
    assert argv[0] == str(fake.binary)
    assert {
        "--model-repository=/models",
        "--model-repository=/more",
        "--http-restricted-api=model-repository:tristage-repository-key=r",
        "--grpc-restricted-protocol=model-repository:tristage-repository-key=r",
        "--http-address=127.0.0.1",
        "--http-port=1",
        "--grpc-address=127.0.0.1",
        "--grpc-port=2",
        "--metrics-address=127.0.0.1",
        "--metrics-port=3",
        "--reuse-http-port=false",
        "--reuse-grpc-port=false",
        "--backend-config=python,shm-region-prefix-name=tristage-x",
        "--id=tristage-x",
    } <= set(argv)
    twice = {"--model-repository", "--http-restricted-api", "--grpc-restricted-protocol"}  # two folders, two keys
    flags = [flag.partition("=")[0] for flag in argv]
    assert {flag for flag in flags if flags.count(flag) > 1} == twice
    assert not {"--cache-config", "--rate-limit"} & set(flags)


def test_a_cache_and_rate_limits_are_asked_for(fake: Triton) -> None:
    said = {"admin_key": "k", "repository_key": "r", "percentiles": False, "traces": None, "server_id": "x"}
    where = {"host": "127.0.0.1", "ports": Ports(1, 2, 3)}
    argv = arguments(fake, Path("/models"), Path("/more"), **where, **said, cache=True, rate_limits=True)  # type: ignore[arg-type]
    wanted = {f"--cache-directory={fake.caches}", "--cache-config=local,size=67108864", "--rate-limit=execution_count"}
    assert wanted <= set(argv)


def test_pinned_thread_pools_get_as_many_threads_as_cores(fake: Triton) -> None:
    env = environment(fake, (0, 5), {"PATH": "/bin", "OMP_NUM_THREADS": "64"})
    assert {env[name] for name in triton.THREAD_VARIABLES} == {"2"}
    assert {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TRISTAGE_THREADS"} <= set(
        triton.THREAD_VARIABLES
    )


def test_unpinned_thread_pools_keep_what_the_user_set(fake: Triton) -> None:
    env = environment(fake, None, {"PATH": "/bin", "OMP_NUM_THREADS": "64"})
    assert env["OMP_NUM_THREADS"] == "64"
    assert env["MKL_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))


def test_paths_put_triton_first_and_keep_the_users(fake: Triton) -> None:
    base = {"PATH": "/bin", "LD_LIBRARY_PATH": "/mine", "PYTHONPATH": "/theirs", "HOME": "/home/me"}
    env = environment(fake, None, base)
    assert env["PATH"] == f"{fake.python}:/bin"
    assert env["LD_LIBRARY_PATH"] == f"{fake.libraries[0]}:{fake.libraries[1]}:/mine"
    assert env["HOME"] == "/home/me"
    assert env.get("VIRTUAL_ENV") == (sys.prefix if sys.prefix != sys.base_prefix else None)
    assert base["PATH"] == "/bin", "the caller's environment is left alone"


def test_an_empty_environment_gets_no_empty_entries(fake: Triton) -> None:
    env = environment(fake, None, {})
    assert "" not in env["LD_LIBRARY_PATH"].split(":")
    assert "" not in env["PATH"].split(":")


def test_stubs_get_the_search_path_of_this_program_with_this_tristage_first(
    fake: Triton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folders = environment(fake, None, {})["TRISTAGE_PATH"].split(os.pathsep)
    assert folders[0] == str(Path(tristage.__file__).resolve().parent.parent)
    assert str(tmp_path) in folders
    assert sysconfig.get_path("purelib") in folders
    assert "" not in folders
