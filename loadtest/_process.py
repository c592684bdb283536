"""What the server's processes cost: CPU seconds and memory, from Linux's /proc, where the server runs on this machine.

The server is the tritonserver that listens on the URL's port, and every process below it: models of its Python backend
are processes of their own. A port that something else listens on (a proxy, a container engine's port forwarder, ssh)
says nothing about the server, and then its cost is unknown unless its process id is given.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tristage.client._wire import Address
from tristage.errors import InputError

__all__ = ["Processes", "Usage", "Watch", "find_server", "of_pid"]

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LOOK_S = 0.25
_LISTENS = "0A"
_SERVER = "tritonserver"
_REPOSITORY = b"--model-repository="


@dataclass(frozen=True)
class Usage:
    """CPU seconds so far and resident bytes now, of all processes together."""

    cpu_s: float
    resident: int


@dataclass(frozen=True)
class Processes:
    """A server's processes.

    Attributes:
        pid: the first one; None where they are unknown.
        words: what they are, or why they are unknown.
    """

    pid: int | None
    words: str

    def usage(self) -> Usage | None:
        """What they have used; None where they are unknown, or gone."""
        if self.pid is None:
            return None
        cpu, resident = 0.0, 0
        alive = False
        for pid in _tree(self.pid):
            with contextlib.suppress(OSError, IndexError, ValueError):  # it may end at any time
                fields = _stat(pid)
                # user and system time of its own and of its children that ended, see proc(5)
                cpu += sum(map(int, fields[11:15])) * _TICK_S
                resident += int(fields[21]) * _PAGE
                alive = True
        return Usage(cpu, resident) if alive else None

    def cores(self) -> set[int] | None:
        """The cores they may use; None where they are unknown, or gone."""
        with contextlib.suppress(OSError):
            return None if self.pid is None else os.sched_getaffinity(self.pid)
        return None

    def repository(self) -> Path | None:
        """The model repository that the server was started on, where its command line says so."""
        with contextlib.suppress(OSError):
            words = (_PROC / str(self.pid) / "cmdline").read_bytes().split(b"\0") if self.pid is not None else []
            for word in words:
                if word.startswith(_REPOSITORY):
                    return Path(os.fsdecode(word.removeprefix(_REPOSITORY)))
        return None

    def shared_once(self) -> int | None:
        """Resident bytes with shared pages counted once; None where the kernel does not say."""
        if self.pid is None:
            return None
        total = 0
        try:
            for pid in _tree(self.pid):
                for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
        except (OSError, ValueError):
            return None
        return total or None


class Watch:
    """Looks at the memory of processes now and then, on a thread of its own, for as long as its block lasts.

    Processes that begin meanwhile are left out: finding them would take milliseconds from the threads that are timed.
    """

    def __init__(self, processes: Processes) -> None:
        self._files = [_PROC / str(pid) / "statm" for pid in _tree(processes.pid)] if processes.pid is not None else []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peak = 0

    def __enter__(self) -> Watch:
        if self._files:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        if self._files:
            self._thread.join()

    def _run(self) -> None:
        while True:
            resident = 0
            for file in self._files:
                with contextlib.suppress(OSError, IndexError, ValueError):  # it may end at any time
                    resident += int(file.read_text().split()[1]) * _PAGE
            self.peak = max(self.peak, resident)
            if self._end.wait(_LOOK_S):
                return


def of_pid(pid: int) -> Processes:
    """The processes from `pid` downwards.

    Raises:
        InputError: there is no such process, or no /proc to look in.
    """
    try:
        name = _name(pid)
    except OSError as error:
        raise InputError(f"--server-pid {pid}: no such process on this machine; leave it out, or look again") from error
    return Processes(pid, f"{name} {pid} and the processes below it")


def find_server(address: Address) -> Processes:
    """The server's processes, found by the port that they listen on."""
    if not _PROC.joinpath("self", "stat").exists():
        return Processes(None, "unknown: this machine has no /proc")
    if not _is_here(address.host):
        return Processes(None, f"unknown: {address.host} is another machine")
    owner = _listener(address.port)
    if owner is None:
        return Processes(
            None,
            f"unknown: whoever listens on port {address.port} is another user's process or in a container; "
            "--server-pid names it",
        )
    with contextlib.suppress(OSError):
        if _name(owner) == _SERVER:
            return Processes(owner, f"{_SERVER} {owner} and the processes below it")
        return Processes(None, f"unknown: {_name(owner)} listens on port {address.port}; --server-pid names the server")
    return Processes(None, "unknown: the server's process has ended")


def _is_here(host: str) -> bool:
    """Whether a name or an address is this machine's: then, and only then, it can be bound."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, place in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(place)
                return True
    return False


def _listener(port: int) -> int | None:
    """The process that listens on a TCP port; the first of them where several do."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "self" / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()  # local address at 1, state at 3, inode at 9
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    if not sockets:
        return None
    for pid in sorted(_pids()):
        with contextlib.suppress(OSError):
            for entry in (_PROC / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.fspath(entry.readlink()) in sockets:
                        return pid
    return None


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    below: dict[int, list[int]] = {}
    for pid in _pids():
        with contextlib.suppress(OSError, IndexError, ValueError):
            below.setdefault(int(_stat(pid)[1]), []).append(pid)
    found = [root]
    for pid in found:
        found.extend(below.get(pid, []))
    return found


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: what comes before holds the name, which may hold anything."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _name(pid: int) -> str:
    return (_PROC / str(pid) / "comm").read_text().strip()
