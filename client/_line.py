"""Unary gRPC over blocking sockets: connections, each with one call on its way."""

from __future__ import annotations

import socket
import threading
import time

from tristage.client._http2 import ConnectionClosed, ConnectionLost, Unary
from tristage.client._late import AT_ONCE, Late, time_left
from tristage.client._wire import Address

__all__ = ["Line", "Lines"]

Answer = tuple[int, str, bytes]


class Line:
    """One connection, for one thread at a time.

    Attributes:
        usable: whether another call may be made.
    """

    def __init__(self, address: Address, deadline: float) -> None:
        self._socket = socket.create_connection((address.host, address.port), time_left(deadline))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unary = Unary()
        self._opening = self._unary.opening()
        self.usable = True

    def call(self, block: bytes, message: bytes, deadline: float, late: Late) -> Answer:
        """Make a call; what `Unary.answer` gives.

        Args:
            block: the headers, as `header_block` made them.
            message: a serialised message.
            deadline: until when to wait, of time.monotonic().
            late: who reads the call to its end from then on.

        Raises:
            TimeoutError: there was no answer until then.
            OSError: the connection broke.
            ValueError, LookupError: what came cannot be read.
        """
        time_left(deadline)
        connection, unary, sent = self._socket, self._unary, False
        self.usable = False  # unless all goes well
        try:
            connection.settimeout(time_left(deadline))
            connection.sendall(self._opening + unary.begin(block, message))
            self._opening = b""
            sent = True
            while not unary.done:
                connection.settimeout(time_left(deadline))
                data = connection.recv(AT_ONCE)
                if not data:
                    raise ConnectionLost("the server closed the connection")
                more = unary.take(data)
                if more:
                    sent = False
                    connection.sendall(more)
                    sent = True
            answer = unary.answer()
        except (OSError, ValueError, LookupError) as error:
            self._leave(sent and isinstance(error, TimeoutError), late)
            raise
        except BaseException:  # interrupted
            self._leave(sent, late)
            raise
        self.usable = not unary.over
        return answer

    def _leave(self, running: bool, late: Late) -> None:
        if running and self._unary.sent and not self._unary.done:
            late.add(socket.socket(fileno=self._socket.detach()), self._unary)
        else:  # the server has not got the whole request, so it has not begun, or nothing is left of the call
            self._socket.close()

    def close(self) -> None:
        """Close it; no call may be on its way."""
        self._socket.close()


class Lines:
    """Connections to one server, as many as threads ask at once; safe to share between threads."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._idle: list[Line] = []
        self._closed = False
        self._late = Late()

    @property
    def late(self) -> int:
        """Calls that nobody waits for any more."""
        return self._late.count

    def call(self, block: bytes, message: bytes, seconds: float) -> Answer:
        """As `Line.call`, over a kept connection where there is one.

        Raises:
            ConnectionClosed: `close` was called.
        """
        deadline = time.monotonic() + seconds
        self._late.wait_for_room(deadline)
        line = self._take()
        if line is not None:
            try:
                return self._call(line, block, message, deadline)
            except (ConnectionLost, ConnectionError):  # its server was restarted; asking twice does no harm
                pass
        return self._call(Line(self._address, deadline), block, message, deadline)

    def close(self) -> None:
        """Close all connections that have no call on their way, and the others when theirs have ended."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()

    def _take(self) -> Line | None:
        with self._lock:
            if self._closed:
                raise ConnectionClosed("the connection was closed")
            return self._idle.pop() if self._idle else None

    def _call(self, line: Line, block: bytes, message: bytes, deadline: float) -> Answer:
        answer = line.call(block, message, deadline, self._late)
        with self._lock:
            if line.usable and not self._closed:
                self._idle.append(line)
                return answer
        line.close()
        return answer
