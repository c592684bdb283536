"""`python -m benchmarks.gpu`: see the package."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmarks.gpu

NEEDED = ("numpy", "onnx", "onnxruntime", "torch", "triton")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 1 where answers differ, 2 where something is missing."""
    words = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = words.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="write a fused repository as parts")
    pack.add_argument("repository", type=Path)
    pack.add_argument("-o", "--output", type=Path, required=True)
    pack.add_argument("--part-mb", type=int, default=60, help="megabytes of a part, at most (60)")
    run = commands.add_parser("run", help="prove and measure on this machine's GPU")
    run.add_argument("parts", type=Path, nargs="+", help="folders that hold the parts")
    run.add_argument("-o", "--output", type=Path, required=True, help="folder that gpu.json goes to")
    run.add_argument("--unpacked", type=Path, default=Path("/tmp/tristage-gpu"), help="where to unpack them")
    run.add_argument("--threads", type=int, default=os.cpu_count(), help="of the host's, for texts")
    run.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this out without a GPU")
    run.add_argument("--most", type=int, default=131_072, help="rows of the largest batch")
    publish = commands.add_parser("publish", help="write benchmarks/results/gpu.*")
    publish.add_argument("found", type=Path)
    said = words.parse_args(arguments)
    if said.command == "pack":
        from benchmarks.gpu.bundle import bundle

        print(bundle(said.repository, said.output, said.part_mb * 1_000_000))
        return 0
    if said.command == "publish":
        from benchmarks.gpu.report import publish as write

        return write(said.found)
    needed = NEEDED if said.device == "cuda" else NEEDED[:-1]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        print(f"missing here: {', '.join(missing)}", file=sys.stderr)
        return 2
    import torch

    from benchmarks.gpu.parts import PartsMissing, join

    if said.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no GPU here", file=sys.stderr)
        return 2
    try:
        about = join(said.parts, said.unpacked)
    except PartsMissing as error:
        print(error, file=sys.stderr)
        return 2
    from benchmarks.gpu.measure import TOLERANCE, measure

    found = measure(said.unpacked, about, said.threads, said.device, said.most)
    said.output.mkdir(parents=True, exist_ok=True)
    (said.output / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    off = max(value for its in found["parity"].values() for value in its.values())
    return 0 if off <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
