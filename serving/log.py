"""Triton's log: passed on line by line, with a tail kept to say why a server ended."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from typing import IO, Protocol

__all__ = ["Log", "LogTarget", "reason", "still_loading", "taken_port"]

_ERROR = re.compile(r"^(?:E\d{4} [\d:.]+\s+\d+ \S+\]|error:|\[libprotobuf ERROR [^]]*\])\s*(?P<text>.*)$")
_FAILED = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<text>.*)$", re.DOTALL)
_LOADING = re.compile(r"\] \"(?P<done>successfully loaded '|loading: )(?P<model>[^:']+)")
_TAKEN = re.compile(r"Socket '\S+:(?P<port>\d+)' already in use")
# the first two are said on every machine without a GPU, the third after whatever the cause was
_NOISE = ("CudaDriverHelper", "CUDA driver version", "error: creating server")


class _Writable(Protocol):
    def write(self, text: str, /) -> object: ...


LogTarget = Callable[[str], object] | _Writable | None


class Log:
    """Reads a server's output in a thread of its own until it ends.

    Args:
        stream: the server's output, UTF-8.
        target: takes every line as it comes: a function gets it without its newline, a file with it. A target that
            raises is not called again; the server is not held up by it.
    """

    def __init__(self, stream: IO[bytes], target: LogTarget) -> None:
        self._tail: deque[str] = deque(maxlen=400)
        self._stream = stream
        self._pass_on = _as_function(target)
        self._thread = threading.Thread(target=self._read, name="tristage-log", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            for raw in self._stream:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                self._tail.append(line)
                if self._pass_on is not None:
                    try:
                        self._pass_on(line)
                    except Exception:
                        self._pass_on = None

    def tail(self) -> list[str]:
        """The last lines, oldest first."""
        return list(self._tail)

    def finish(self, timeout: float) -> None:
        """Wait until the server's last line was read."""
        self._thread.join(timeout)


def _as_function(target: LogTarget) -> Callable[[str], object] | None:
    if target is None or callable(target):
        return target
    return lambda line: target.write(line + "\n")


def reason(lines: list[str]) -> str:
    """Why Triton ended, from its log: the models that failed to load, else its first errors, else its last line."""
    matches = [match for line in lines if (match := _ERROR.match(line))]
    errors = [_plain(match["text"]) for match in matches if not any(noise in match[0] for noise in _NOISE)]
    failed = {match["model"]: match["text"] for error in errors if (match := _FAILED.search(error))}
    if failed:
        return "\n".join(f"model {model} does not load: {text}" for model, text in failed.items())
    if errors:
        return "\n".join(errors[:2])
    return next((line for line in reversed(lines) if line.strip()), "it wrote nothing")


def still_loading(lines: list[str]) -> list[str]:
    """Names of the models that Triton began to load and has not finished."""
    done: dict[str, bool] = {}
    for line in lines:
        if match := _LOADING.search(line):
            done[match["model"]] = match["done"] != "loading: "
    return [model for model, loaded in done.items() if not loaded]


def taken_port(lines: list[str]) -> int | None:
    """The port that Triton found taken, if it did."""
    return next((int(match["port"]) for line in lines if (match := _TAKEN.search(line))), None)


def _plain(text: str) -> str:
    """A message of Triton's log without quotes, escapes and a Python error's traceback (the log has it)."""
    text = text.strip().removeprefix('"').removesuffix('"').replace("\\n", "\n").replace('\\"', '"')
    return text.partition("\n\nAt:\n")[0].strip()[:2000]
