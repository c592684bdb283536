"""What a training has made is kept: a file that is there is whole, and a training that was stopped goes on after it."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["aside", "kept_array", "only_one", "remove", "replace", "work_folder"]

WORKING = ("*.arrow", "*.npy", "mark")  # of a work folder; no part of the artifacts


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A name beside `path`, with its ending, to write a file or folder under; it becomes `path` when all went well."""
    part = path.with_name(f".part-{path.name}")
    remove(part)
    yield part
    part.rename(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def kept_array(file: Path, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """The array that a `.npy` file keeps; made, and kept, if it is not there."""
    if not file.is_file():
        with aside(file) as part:
            np.save(part, make())
    return np.asarray(np.load(file))


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Wait until nobody else trains into a folder, and keep others waiting; a process that dies keeps nobody."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def work_folder(folder: Path, mark: str, fresh: bool) -> Path:
    """The folder beside `folder` that a training works in: what an earlier one of the same mark left, or an empty one.

    Args:
        folder: what will be the result.
        mark: tells trainings apart.
        fresh: begin anew in any case.
    """
    work = folder.with_name(f".{folder.name}-training")
    told = work / "mark"
    if fresh or not told.is_file() or told.read_text() != mark:
        remove(work)
        work.mkdir()
        with aside(told) as part:
            part.write_text(mark)
    return work


def replace(work: Path, folder: Path) -> None:
    """A work folder, less what only the training needed, takes the place of `folder`."""
    for pattern in WORKING:
        for file in work.glob(pattern):
            file.unlink()
    replaced = folder.with_name(f".{folder.name}-replaced")
    remove(replaced)
    if folder.exists():
        folder.rename(replaced)
    work.rename(folder)
    remove(replaced)
