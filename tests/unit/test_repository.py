"""Writing a repository: all of it or nothing, and never over what is somebody else's."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tristage
from tristage.columns import Column, Signature
from tristage.errors import ExportError
from tristage.export.choices import Chosen
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.place import PlacedModel, Placement, Tensor
from tristage.export.repository import aside, check_place, write_models
from tristage.manifest import Manifest, check_files, checksums, read_manifest, write_manifest

SIGNATURE = Signature("s", 8, (Column("a", "float32"),), (Column("y", "float32"),))
SOURCES = str(Path(tristage.__file__).parents[1])


def placement(weights: int = 3) -> Placement:
    import numpy as np

    graph = GraphBuilder()
    table = graph.constant(np.linspace(0, 1, weights, dtype=np.float32).reshape(1, -1))
    total = graph.add("ReduceSum", table, graph.constant(np.array([1], np.int64)), keepdims=1)
    model = graph.model([("y", graph.add("Mul", graph.input("a", "float32", 1), total), "float32", 1)])
    tensors = ((Tensor("a", "float32", 1),), (Tensor("y", "float32", 1),))
    return Placement(SIGNATURE, (PlacedModel("s_one", ("one",), model, *tensors, columns={"y": (("one", "y"),)}),))


def export(path: Path, weights: int = 3) -> None:
    with aside(path) as fresh:
        write_models(fresh, placement(weights), {"s_one": Chosen("tristage")})
        write_manifest(fresh, Manifest("s", "pip-cpu", "ensemble", SIGNATURE, {"one": "s_one"}, {}, checksums(fresh)))


def fail(path: Path, error: BaseException) -> None:
    """An export that meets an error halfway."""
    with aside(path) as fresh:
        (fresh / "half").write_text("done")
        raise error


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


class TestCheckPlace:
    def test_free_places(self, tmp_path: Path) -> None:
        check_place(tmp_path / "new" / "deeper", overwrite=False)
        check_place(tmp_path, overwrite=False)
        for name in ("README.md", ".gitignore", ".gitkeep"):
            (tmp_path / name).write_text("mine")
        check_place(tmp_path, overwrite=False)

    def test_a_repository(self, tmp_path: Path) -> None:
        export(tmp_path / "repository")
        with pytest.raises(ExportError, match=r"repository already holds an exported stack; .*--overwrite"):
            check_place(tmp_path / "repository", overwrite=False)
        check_place(tmp_path / "repository", overwrite=True)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_foreign_folder(self, tmp_path: Path, overwrite: bool) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(ExportError, match=r"holds thesis\.txt, which no export of tristage wrote"):
            check_place(tmp_path, overwrite)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_file(self, tmp_path: Path, overwrite: bool) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ExportError, match=r"file is a file; give a folder"):
            check_place(tmp_path / "file", overwrite)


class TestAside:
    def test_new(self, tmp_path: Path) -> None:
        export(tmp_path / "deep" / "repository")
        manifest = read_manifest(tmp_path / "deep" / "repository")
        check_files(tmp_path / "deep" / "repository", manifest)
        assert {"s_one/config.pbtxt", "s_one/1/graph.onnx", "s/config.pbtxt", "s/1/.keep"} == set(manifest.files)
        assert os.listdir(tmp_path / "deep") == ["repository"]
        assert (tmp_path / "deep" / "repository").stat().st_mode & 0o777 == 0o755

    def test_twice_is_the_same_bytes(self, tmp_path: Path) -> None:
        export(tmp_path / "one", 5000)
        export(tmp_path / "two", 5000)
        assert content(tmp_path / "one") == content(tmp_path / "two")
        assert "s_one/1/graph.bin" in content(tmp_path / "one")  # large tensors lie beside the graph

    def test_replaces_all_but_the_owners_files(self, tmp_path: Path) -> None:
        path = tmp_path / "repository"
        path.mkdir()
        for name in ("README.md", ".gitignore", ".gitkeep"):
            (path / name).write_text(f"my {name}")
        export(path, 5000)
        check_files(path, read_manifest(path))
        (path / "s_one" / "stale.txt").touch()
        export(path)
        check_files(path, read_manifest(path))
        after = content(path)
        assert after["README.md"] == b"my README.md"
        assert after[".gitignore"] == b"my .gitignore"
        assert "s_one/stale.txt" not in after
        assert "s_one/1/graph.bin" not in after
        assert os.listdir(tmp_path) == ["repository"]

    @pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), MemoryError()])
    def test_an_exception_leaves_what_was_there(self, tmp_path: Path, error: BaseException) -> None:
        path = tmp_path / "repository"
        export(path)
        before = content(tmp_path)
        with pytest.raises(type(error)):
            fail(path, error)
        assert content(tmp_path) == before

    def test_an_exception_leaves_nothing_where_nothing_was(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="bug"):
            fail(tmp_path / "repository", ValueError("bug"))
        assert os.listdir(tmp_path) == []

    def test_os_errors_name_the_path(self, tmp_path: Path) -> None:
        path = tmp_path / "repository"
        export(path)
        before = content(tmp_path)
        words = rf"{path} could not be written: Input/output error \(x\); what was there before is untouched"
        with pytest.raises(ExportError, match=words):
            fail(path, OSError(5, "Input/output error", "x"))
        assert content(tmp_path) == before

    def test_a_parent_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ExportError, match="file/repository could not be written"):
            export(tmp_path / "file" / "repository")

    def test_rename_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "repository"
        export(path)
        before = content(tmp_path)
        rename = Path.rename

        def fail(self: Path, target: Path) -> Path:
            if target == path / "s_one" and ".old." not in str(self):
                raise OSError(5, "Input/output error", str(self))
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail)
        with pytest.raises(ExportError, match="Input/output error"):
            export(path, 5000)
        monkeypatch.undo()
        assert content(tmp_path) == before

    def test_link_to_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        export(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        check_files(tmp_path / "real", read_manifest(tmp_path / "link"))


_WRITE = """
    import sys
    sys.path[:0] = [{tests!r}]
    from pathlib import Path
    from tristage.errors import ExportError
    {before}
    import test_repository
    try:
        test_repository.export(Path({path!r}), 4_000_000)
    except ExportError as error:
        print("ExportError:", error)
"""


def _export_in_a_process(path: Path, before: str, prefix: list[str] | None = None) -> str:
    script = textwrap.dedent(_WRITE).format(tests=str(Path(__file__).parent), path=str(path), before=before)
    done = subprocess.run(
        [*(prefix or []), sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": SOURCES},
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def test_files_larger_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "repository"
    export(path)
    before = content(tmp_path)
    said = _export_in_a_process(
        path, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))"
    )
    assert f"ExportError: {path} could not be written: File too large" in said
    assert "what was there before is untouched" in said
    assert content(tmp_path) == before


def test_disk_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        export(disk / "repository")
        before = content(disk)
        said = _export_in_a_process(disk / "repository", "")
        assert f"ExportError: {disk / 'repository'} could not be written: No space left on device" in said
        assert content(disk) == before
        check_files(disk / "repository", read_manifest(disk / "repository"))
    finally:
        subprocess.run(["umount", str(disk)], check=True, capture_output=True)


def test_configurations_are_tritons(tmp_path: Path) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    export(tmp_path / "repository")
    for name in ("s", "s_one"):
        text = (tmp_path / "repository" / name / "config.pbtxt").read_text()
        config = text_format.Parse(text, pb.ModelConfig())
        assert (config.name, config.max_batch_size) == (name, 8)
        assert [(value.name, list(value.dims)) for value in config.input] == [("a", [1])]
        assert [(value.name, list(value.dims)) for value in config.output] == [("y", [1])]
    ensemble = text_format.Parse((tmp_path / "repository/s/config.pbtxt").read_text(), pb.ModelConfig())
    assert ensemble.platform == "ensemble"
    assert Signature.from_json(ensemble.parameters["tristage.signature"].string_value) == SIGNATURE
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == ["s_one"]
