"""Unary gRPC over a plain socket, as a load tester needs it: one call on its way, and nothing done twice."""

from __future__ import annotations

import time

from tristage.client import _wire
from tristage.client._http2 import opening_headers
from tristage.client._late import Late
from tristage.client._line import Line
from tristage.client._wire import Address

__all__ = ["Http2"]


class Http2:
    """A kept connection that makes one gRPC call after the other; it opens itself again after a failure.

    Args:
        address: the server's.
        path: the method's.
        model: its name, for messages.
        timeout: seconds that a call may take.
        late: who reads calls that took longer to their end; shared by the connections of one load.
    """

    def __init__(self, address: Address, path: str, model: str, timeout: float, late: Late) -> None:
        self._address = address
        self._what = _wire.asked("infer", model)
        self._timeout = timeout
        self._late = late
        self._headers = opening_headers(path, address.target)  # the same bytes for every call
        self._line: Line | None = None

    def send(self, request: bytes) -> bytes:
        """Call with a serialised message; give the answer's.

        Raises:
            InferenceFailed: the server refused it, or what it answered cannot be read.
            ServerUnavailable: nothing answers, or not in time.
        """
        deadline = time.monotonic() + self._timeout
        with _wire.grpc_faults(self._address.url, self._what, self._timeout):
            self._late.wait_for_room(deadline)
            if self._line is None or not self._line.usable:
                self.close()
                self._line = Line(self._address, deadline)
            status, words, body = self._line.call(self._headers, request, deadline, self._late)
        _wire.check_status(self._address.url, self._what, status, words, self._timeout)
        return body

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
