"""The command line of the compact examples: trains, exports, serves, compares and measures each that is named."""

from __future__ import annotations

from collections.abc import Sequence

from examples.compact.command_line import carry_out, parser
from examples.compact.systems import SYSTEMS

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = parser("python -m examples.compact", __doc__, SYSTEMS).parse_args(arguments)
    return carry_out(options, SYSTEMS, "compact examples", "compact/{name}.py")
