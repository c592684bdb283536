"""A served stack as files of at most so many bytes, and back: what the program needs, rows, and what is expected."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["INDEX", "PartsMissing", "join", "pack"]

INDEX = "index.json"
ROWS, EXPECTED = "rows.npz", "expected.npz"


class PartsMissing(Exception):
    """Parts are missing or damaged; the message names them."""


class _Split(io.RawIOBase):
    """Writes one stream into files of at most `size` bytes."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        self.parts: list[dict[str, Any]] = []
        self._file: Any = None
        self._digest = hashlib.sha256()
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        count = len(view)
        while len(view):
            if self._file is None:
                self._file = (self._folder / f"part-{len(self.parts):03d}").open("wb")
                self._digest, self._written = hashlib.sha256(), 0
            taken = view[: self._size - self._written]
            self._file.write(taken)
            self._digest.update(taken)
            self._written += len(taken)
            view = view[len(taken) :]
            if self._written == self._size:
                self.end()
        return count

    def end(self) -> None:
        """Close the part that is being written."""
        if self._file is not None:
            self._file.close()
            name = Path(self._file.name).name
            self.parts.append({"name": name, "bytes": self._written, "sha256": self._digest.hexdigest()})
            self._file = None


def pack(
    model: Path,
    rows: dict[str, NDArray[Any]],
    expected: dict[str, NDArray[Any]],
    about: dict[str, Any],
    to: Path,
    size: int,
) -> int:
    """Write a model's version folder, rows and what is expected of them as parts; returns how many.

    Args:
        model: the folder that `program.json` lies in.
        rows: input -> [rows, width]; texts as fixed-length bytes.
        expected: output -> [rows], what the training libraries answered.
        about: what else `run` is to know.
        to: the folder; made if it isn't there.
        size: bytes of a part, at most.
    """
    to.mkdir(parents=True, exist_ok=True)
    split = _Split(to, size)
    with (
        gzip.GzipFile(fileobj=split, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for name, arrays in ((ROWS, rows), (EXPECTED, expected)):
            held = io.BytesIO()
            np.savez(held, **arrays)
            entry = tarfile.TarInfo(name)
            entry.size = held.tell()
            held.seek(0)
            archive.addfile(entry, held)
        for path in sorted(model.rglob("*")):
            if path.is_file() and not path.name.startswith("trees-"):  # of those, engines are built by `tune`
                archive.add(path, f"model/{path.relative_to(model).as_posix()}", recursive=False)
    split.end()
    (to / INDEX).write_text(json.dumps({"about": about, "parts": split.parts}, indent=1) + "\n", encoding="utf-8")
    return len(split.parts)


def join(folders: Sequence[Path], to: Path) -> dict[str, Any]:
    """Unpack parts that lie in several folders; what is there already is not unpacked again.

    Returns:
        What was said about them.

    Raises:
        PartsMissing: the index or some parts are not there, or are damaged.
    """
    index = next((folder / INDEX for folder in folders if (folder / INDEX).is_file()), None)
    if index is None:
        raise PartsMissing(f"no {INDEX} in {', '.join(map(str, folders))}; `pack` writes it beside the parts")
    said = json.loads(index.read_text(encoding="utf-8"))
    found = {
        part["name"]: folder / part["name"]
        for part in said["parts"]
        for folder in folders
        if (folder / part["name"]).is_file() and (folder / part["name"]).stat().st_size == part["bytes"]
    }
    missing = [part["name"] for part in said["parts"] if part["name"] not in found]
    if missing:
        raise PartsMissing(f"{len(missing)} of {len(said['parts'])} parts are missing: {', '.join(missing)}")
    if (to / "whole").is_file():
        return dict(said["about"])
    to.mkdir(parents=True, exist_ok=True)
    parts = [(found[part["name"]], part["sha256"]) for part in said["parts"]]
    with _joined(parts) as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
        for entry in archive:
            inside = to / entry.name
            if not entry.isfile() or to.resolve() not in inside.resolve().parents:
                raise PartsMissing(f"{entry.name} is no file of a packed stack; pack it again")
            inside.parent.mkdir(parents=True, exist_ok=True)
            with inside.open("wb") as file:
                shutil.copyfileobj(archive.extractfile(entry), file)  # type: ignore[arg-type]
    (to / "whole").write_text("", encoding="utf-8")
    return dict(said["about"])


class _Joined(io.RawIOBase):
    """Reads files as one stream, each checked as it ends."""

    def __init__(self, parts: Iterator[tuple[Path, str]]) -> None:
        self._parts = parts
        self._file: Any = None
        self._digest, self._wanted = hashlib.sha256(), ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._file is None:
                part = next(self._parts, None)
                if part is None:
                    return 0
                self._file, self._digest, self._wanted = part[0].open("rb"), hashlib.sha256(), part[1]
            count: int = self._file.readinto(buffer)
            if count:
                self._digest.update(memoryview(buffer)[:count])
                return count
            self._file.close()
            if self._digest.hexdigest() != self._wanted:
                raise PartsMissing(f"{self._file.name} is damaged; bring it again")
            self._file = None


@contextmanager
def _joined(parts: Sequence[tuple[Path, str]]) -> Iterator[io.BufferedReader]:
    with io.BufferedReader(_Joined(iter(parts)), 1 << 20) as stream:
        yield stream
