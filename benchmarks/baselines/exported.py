"""Exports a stack in both layouts, once: `python -m benchmarks.baselines.exported ARTIFACTS FOLDER`.

In a process of its own, so that the one that measures has loaded no training library.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import tristage
from benchmarks.baselines.process import ROOT
from tristage.errors import RepositoryError
from tristage.manifest import check_files, read_manifest

__all__ = ["exported"]

LAYOUTS = ("ensemble", "fused")
SOURCE = "source.sha256"


def exported(artifacts: Path, folder: Path) -> dict[str, Path]:
    """layout -> repository; exported now, unless the folder holds what these artifacts and this tristage make.

    Raises:
        subprocess.CalledProcessError: the export failed; it has said why on stderr.
    """
    repositories = {layout: folder / layout for layout in LAYOUTS}
    mark = _source(artifacts)
    kept = folder / SOURCE
    if not (kept.is_file() and kept.read_text() == mark and all(map(_whole, repositories.values()))):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        words = [sys.executable, "-m", "benchmarks.baselines.exported", artifacts.resolve(), folder.resolve()]
        quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run(list(map(str, words)), check=True, cwd=ROOT, env=quiet, stdout=subprocess.DEVNULL)
        kept.write_text(mark)
    return repositories


def _whole(repository: Path) -> bool:
    try:
        check_files(repository, read_manifest(repository))
    except RepositoryError:
        return False
    return True


def _source(artifacts: Path) -> str:
    """Changes with the artifacts' files (names, sizes, times) and with tristage's own."""
    digest = hashlib.sha256(str(artifacts.resolve()).encode())
    for path in sorted(path for path in artifacts.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(artifacts)} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    for place in tristage.__path__:
        for part in ("", "export", "serving", "client"):
            for path in sorted((Path(place) / part).rglob("*.[ps][yo]") if part else Path(place).glob("*.py")):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def main(artifacts: Path, folder: Path) -> None:
    """Convert once, write both."""
    from tristage.export import prepare, write
    from tristage.export.stack_file import read_stack

    def say(stage: str) -> None:
        print(f"  {stage}", file=sys.stderr, flush=True)

    prepared = prepare(read_stack(artifacts / "stack.yaml"), trust=True, on_stage=say, folder=folder)
    with prepared.scratch:
        for layout in LAYOUTS:
            say(f"writing {layout}")
            write(prepared, folder / layout, layout=layout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
