"""What a gateway is told: where Triton is, whom to let in, and how much to take."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tristage.errors import InputError

__all__ = ["Settings", "read_keys"]


@dataclass(frozen=True)
class Settings:
    """A gateway's settings.

    Attributes:
        url: Triton's address, such as "grpc://127.0.0.1:8001".
        stack: the stack's name, where the server has several.
        repository: the repository that the server serves, for steps' names, versions, checksums and an example row.
        max_in_flight: requests taken at once; the next is refused with 503.
        max_connections: callers' connections kept; the next is answered 503 and closed.
        max_rows: rows that one request may hold.
        max_body: bytes that one request's body may hold, and those that it may hold once decompressed, four times.
        timeout: seconds that a request may take; its X-Request-Timeout-Ms may ask for less.
        keys: caller's name -> SHA-256 digest of its API key; empty lets everyone in.
        rate: requests a second for each key, or for all together where there are no keys; None for any number.
        origins: web pages' origins that may call from a browser (CORS); none unless listed.
        traces: an OpenTelemetry collector's address, such as "http://127.0.0.1:4318"; None for no traces.
    """

    url: str = "grpc://127.0.0.1:8001"
    stack: str | None = None
    repository: Path | None = None
    max_in_flight: int = 256
    max_connections: int = 2048
    max_rows: int = 8192
    max_body: int = 16 << 20
    timeout: float = 10.0
    keys: Mapping[str, bytes] = field(default_factory=dict)
    rate: float | None = None
    origins: tuple[str, ...] = ()
    traces: str | None = None

    @property
    def max_held(self) -> int:
        """Bytes that the bodies of all requests may hold together."""
        return 16 * self.max_body


def read_keys(text: str) -> dict[str, bytes]:
    """Names and digests of keys from "name:key name:key", separated by commas, spaces or lines; # begins a comment.

    Raises:
        InputError: an entry is not name:key, a key is shorter than 16 characters, or a name or key comes twice.
    """
    keys: dict[str, bytes] = {}
    entries = re.split(r"[,\s]+", re.sub(r"(?m)^\s*#.*$", "", text))
    for number, entry in enumerate(filter(None, entries), 1):
        name, colon, key = entry.partition(":")
        if not (name and colon) or not key.isascii():
            raise InputError(f"API key {number} is not name:key in ASCII; write one such pair a line")
        if len(key) < 16:
            raise InputError(
                f'the API key of "{name}" is shorter than 16 characters; make one with: openssl rand -hex 16'
            )
        digest = hashlib.sha256(key.encode()).digest()
        if name in keys or digest in keys.values():
            raise InputError(f'the API key of "{name}", or its name, comes twice; give each caller a key of its own')
        keys[name] = digest
    return keys
