"""Runs one tritonserver and answers for its end: `python warden.py TASK`, TASK being JSON. Standard library only.

It stands between the program that asked for a server and the server, because that program may have threads (after
which nothing but exec is safe in a forked child), may start servers from threads that end, and may be killed. The
warden starts tritonserver on its cores, ends it when told to (SIGTERM, SIGINT, SIGHUP; a second one ends it at once) or
when the program is gone, and leaves neither processes nor shared memory behind.

TASK: parent (pid of the program), report (file descriptor tritonserver's pid is written to), argv, preload (a library
that tritonserver has to have loaded), cores (or null),
patience (seconds from being told to end to SIGKILL), shm (prefix of the server's files in /dev/shm), staging (its
folder of models that were loaded later), http_port.
The exit code is tritonserver's; 128 + n where signal n ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SYS_PIDFD_GETFD = 438  # on every architecture
LAST_DATA_RECV = 52  # where struct tcp_info holds tcpi_last_data_recv, in ms
QUIET = 0.3  # seconds without incoming data after which no request is being uploaded
BUSY = 2.0  # seconds after which a connection that is never quiet is cut after the request it is at
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  Triton's choice, not a place for temporary files
STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def main() -> int:
    task = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP | {signal.SIGCHLD})
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # stubs that outlive tritonserver become this process's children
    pid = os.fork()
    if pid == 0:
        start(task, prctl)
    os.write(task["report"], f"{pid}\n".encode())
    os.close(task["report"])
    try:
        code = watch(pid, parent=task["parent"], patience=task["patience"], http_port=task["http_port"])
    finally:
        kill_rest(pid)
        for path in SHARED_MEMORY.glob(f"{task['shm']}*"):
            path.unlink(missing_ok=True)
        shutil.rmtree(task["staging"], ignore_errors=True)
    return code


def start(task: dict[str, Any], prctl: Callable[..., int]) -> NoReturn:
    """In the forked child: become tritonserver."""
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if task["cores"]:
            os.sched_setaffinity(0, task["cores"])
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        preload = " ".join(filter(None, (task["preload"], os.environ.get("LD_PRELOAD"))))
        os.execve(task["argv"][0], task["argv"], {**os.environ, "LD_PRELOAD": preload})  # noqa: S606  a shell would be in the way of signals
    except BaseException as error:
        os.write(2, f"cannot start tritonserver: {error}\n".encode())
    os._exit(127)


def watch(pid: int, *, parent: int, patience: float, http_port: int) -> int:
    """Wait for tritonserver's end; see to it when it is due."""
    deadline: float | None = None
    hurry = 0.0
    while True:
        signalled = signal.sigtimedwait(STOP | {signal.SIGCHLD}, 0.5)
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            if ended == pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if ended == 0:
                break
        asked = signalled is not None and signalled.si_signo in STOP
        if deadline is None and (asked or os.getppid() != parent):
            deadline = time.monotonic() + patience
            hurry = time.monotonic() + BUSY
            os.kill(pid, signal.SIGTERM)
        elif deadline is not None and (asked or time.monotonic() > deadline):
            os.killpg(pid, signal.SIGKILL)
        if deadline is not None:
            half_close(pid, http_port, QUIET if time.monotonic() < hurry else 0.0)


def half_close(pid: int, port: int, quiet: float) -> None:
    """Tell tritonserver that nothing more comes over its HTTP connections that were quiet for `quiet` seconds.

    When it ends, it waits for every open HTTP connection, idle ones too, and pooled connections stay open for hours.
    After this it answers the request it has and closes. Where the kernel does not let a parent do this (a container's
    seccomp profile), it waits as long as --exit-timeout-secs says.
    """
    syscall = ctypes.CDLL(None).syscall
    with contextlib.suppress(OSError):  # tritonserver may end at any time
        process = os.pidfd_open(pid)
        try:
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                fd = syscall(SYS_PIDFD_GETFD, process, int(entry.name), 0)
                if fd >= 0:
                    half_close_one(fd, port, quiet)
        finally:
            os.close(process)


def half_close_one(fd: int, port: int, quiet: float) -> None:
    """The same for one file descriptor of tritonserver's, whatever it is; closes this process's copy of it."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.close(fd)
        return
    with socket.socket(fileno=fd) as connection, contextlib.suppress(OSError):  # listening, or closed meanwhile
        if connection.family == socket.AF_INET and connection.getsockname()[1] == port and connection.getpeername():
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
            if struct.unpack_from("I", info, LAST_DATA_RECV)[0] >= 1000 * quiet:
                connection.shutdown(socket.SHUT_RD)


def kill_rest(pid: int) -> None:
    """End and reap every process that tritonserver left."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
