"""The manifest: read back as written; every change to a repository is found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tristage.columns import Column, Signature
from tristage.errors import RepositoryError
from tristage.manifest import MANIFEST, Manifest, check_files, checksums, read_manifest, write_manifest

SIGNATURE = Signature(
    "s",
    64,
    (
        Column("a", "float32", nullable=True),
        Column("tags", "int64", 3, 0),
        Column("numbers", "float32", 2, float("nan")),
        Column("word", "string"),
    ),
    (Column("y", "float32"),),
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, content in {"s/config.pbtxt": "one", "s_x/1/graph.onnx": "two", "golden.parquet": "three"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    write_manifest(
        tmp_path,
        Manifest(
            "s", "pip-cpu", "ensemble", SIGNATURE, {"x": "s_x"}, {"numpy": "1"}, checksums(tmp_path), ("noted", "twice")
        ),
    )
    return tmp_path


def test_round_trip(repository: Path) -> None:
    manifest = read_manifest(repository)
    # NaN is a pad that equals nothing, itself included
    assert repr(manifest.signature) == repr(SIGNATURE)
    assert (manifest.stack, manifest.target, manifest.layout) == ("s", "pip-cpu", "ensemble")
    assert (dict(manifest.models), dict(manifest.versions)) == ({"x": "s_x"}, {"numpy": "1"})
    assert manifest.notes == ("noted", "twice")
    assert sorted(manifest.files) == ["golden.parquet", "s/config.pbtxt", "s_x/1/graph.onnx"]
    before = (repository / MANIFEST).read_bytes()
    write_manifest(repository, manifest)
    assert (repository / MANIFEST).read_bytes() == before


def test_unchanged(repository: Path) -> None:
    check_files(repository, read_manifest(repository))


def test_what_the_owner_may_add(repository: Path) -> None:
    for name in ("README.md", ".gitignore", ".gitkeep", "s_x/1/__pycache__/model.cpython-311.pyc"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("mine")
    check_files(repository, read_manifest(repository))


def test_missing(repository: Path) -> None:
    (repository / "s_x/1/graph.onnx").unlink()
    with pytest.raises(
        RepositoryError, match=r"does not match .*\(missing: s_x/1/graph\.onnx\); export the stack again"
    ):
        check_files(repository, read_manifest(repository))


def test_changed(repository: Path) -> None:
    (repository / "s/config.pbtxt").write_text("onE")
    with pytest.raises(RepositoryError, match=r"\(changed since export: s/config\.pbtxt\)"):
        check_files(repository, read_manifest(repository))


@pytest.mark.parametrize("name", ["s_x/2/graph.onnx", "evil/config.pbtxt", "s_x/README.md", "s_x/1/model.py"])
def test_strange(repository: Path, name: str) -> None:
    (repository / name).parent.mkdir(parents=True, exist_ok=True)
    (repository / name).write_text("x")
    with pytest.raises(RepositoryError, match=rf"\(not of this export: {name}\)"):
        check_files(repository, read_manifest(repository))


def test_all_at_once(repository: Path) -> None:
    (repository / "golden.parquet").unlink()
    (repository / "s/config.pbtxt").write_text("")
    for number in range(7):
        (repository / f"more{number}").touch()
    words = (
        r"missing: golden\.parquet; changed since export: s/config\.pbtxt; not of this export: more0, .*more4 \.\.\."
    )
    with pytest.raises(RepositoryError, match=words):
        check_files(repository, read_manifest(repository))


def test_a_folder_in_place_of_a_file(repository: Path) -> None:
    (repository / "golden.parquet").unlink()
    (repository / "golden.parquet").mkdir()
    with pytest.raises(RepositoryError, match=r"missing: golden\.parquet"):
        check_files(repository, read_manifest(repository))


def test_no_manifest(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(RepositoryError, match=r"holds no manifest\.json.*tristage export"):
            read_manifest(path)
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match=r"file holds no manifest"):
        read_manifest(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "{", "\xff not json", '{"format": 1'])
def test_broken(repository: Path, text: str) -> None:
    (repository / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(RepositoryError, match=r"manifest\.json cannot be read .*export the stack again"):
        read_manifest(repository)


@pytest.mark.parametrize(("document", "found"), [({"format": 2}, "2"), ({}, "None"), ([], "'list'"), (3, "'int'")])
def test_another_format(repository: Path, document: Any, found: str) -> None:
    (repository / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(RepositoryError, match=rf"has format {found}, this tristage reads 1; export the stack again"):
        read_manifest(repository)


@pytest.mark.parametrize("key", ["stack", "target", "layout", "signature", "models", "versions", "files", "notes"])
def test_incomplete(repository: Path, key: str) -> None:
    document = json.loads((repository / MANIFEST).read_text())
    del document[key]
    (repository / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(RepositoryError, match=rf"is incomplete \(KeyError\('{key}'\)\)"):
        read_manifest(repository)


@pytest.mark.parametrize(
    ("key", "value"), [("signature", {}), ("signature", 3), ("files", 3), ("models", [1]), ("notes", 3)]
)
def test_wrong_types(repository: Path, key: str, value: Any) -> None:
    document = json.loads((repository / MANIFEST).read_text())
    document[key] = value
    (repository / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(RepositoryError):
        read_manifest(repository)
