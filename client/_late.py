"""gRPC calls that nobody waits for any more: read to their end, and never cancelled.

Triton 2.51 may end with SIGSEGV when a call that it works on is cancelled, which a deadline that it is told of, a
reset stream and a closed connection all do. So a call whose time is up keeps its connection until its answer comes,
also when its client is closed.
"""

from __future__ import annotations

import atexit
import socket
import threading
import time

from tristage.client._http2 import Unary

__all__ = ["MOST", "PATIENCE", "Late", "time_left"]

MOST = 64  # late calls of one client; with so many no other is begun
PATIENCE = 120.0  # seconds after which a late call is given up for good: its server hangs
AT_ONCE = 1 << 18  # bytes taken from a connection at once
_LEAVE = 5.0  # seconds that a process which ends waits for its late calls

_readers: set[threading.Thread] = set()


class Late:
    """The late calls of one client; safe to share between threads.

    Attributes:
        count: how many there are.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.count = 0

    def wait_for_room(self, deadline: float) -> None:
        """Return when another call may be begun.

        Raises:
            TimeoutError: not before the deadline, of time.monotonic().
        """
        if self.count >= MOST:
            with self._changed:
                if not self._changed.wait_for(lambda: self.count < MOST, max(deadline - time.monotonic(), 0.0)):
                    raise TimeoutError

    def add(self, connection: socket.socket, unary: Unary) -> None:
        """Read a call whose request was sent whole to its end, in a thread, and close its connection then."""
        reader = threading.Thread(target=self._read, args=(connection, unary), name="late call", daemon=True)
        with self._changed:
            self.count += 1
            _readers.add(reader)
        try:
            reader.start()
        except RuntimeError:  # no thread can be had, as when the process ends
            self._end(connection, reader)

    def _read(self, connection: socket.socket, unary: Unary) -> None:
        end = time.monotonic() + PATIENCE
        try:
            while not unary.done:
                connection.settimeout(time_left(end))
                data = connection.recv(AT_ONCE)
                if not data:
                    break
                if answer := unary.take(data):
                    connection.sendall(answer)
        except (OSError, ValueError, LookupError):  # nobody is left to be told
            pass
        finally:
            self._end(connection, threading.current_thread())

    def _end(self, connection: socket.socket, reader: threading.Thread) -> None:
        connection.close()
        with self._changed:
            self.count -= 1
            _readers.discard(reader)
            self._changed.notify_all()


def time_left(deadline: float) -> float:
    """Seconds until a deadline of time.monotonic().

    Raises:
        TimeoutError: there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@atexit.register
def _leave() -> None:
    end = time.monotonic() + _LEAVE
    for reader in tuple(_readers):
        reader.join(max(end - time.monotonic(), 0.0))
