"""The command line of MicroParade: trains, exports, serves, compares and measures it, in both of its variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.compact.command_line import carry_out, parser
from examples.microparade.train import SYSTEMS

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    known = parser("python -m examples.microparade", __doc__, SYSTEMS)
    known.add_argument("--past", type=int, metavar="N", help="past tweets of a request, the size's if not said")
    known.add_argument("--bert", type=Path, metavar="FOLDER", help="of a BERT, as save_pretrained writes it")
    options = known.parse_args(arguments)
    if options.past is not None and options.past < 1:
        known.error(f"--past {options.past}: there is room for one past tweet at least")
    changed: dict[str, Any] = {"past": options.past, "bert": options.bert}
    changed = {name: value for name, value in changed.items() if value is not None}
    systems = {
        name: replace(system, sizes={size: replace(its, **changed) for size, its in system.sizes.items()})
        for name, system in SYSTEMS.items()
    }
    return carry_out(options, systems, "MicroParade", "microparade/README.md")
