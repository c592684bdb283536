"""What a server takes of the machine: an address, ports and cores, asked for before anything is started."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from tristage.errors import PortInUse, ServerError
from tristage.serving.triton import Ports

__all__ = ["address_of", "check_cores", "choose_ports"]


def address_of(host: str) -> str:
    """The IPv4 address of a host; raises ServerError where it has none."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ServerError(
            f"--host {host} is not an IPv4 address or name of this machine ({error}); "
            "use 127.0.0.1 for this machine alone or 0.0.0.0 for every network it is on"
        ) from error


def choose_ports(address: str, wanted: dict[str, int]) -> Ports:
    """Check that each port is free, and choose one where 0 is wanted.

    Triton itself notices a taken port only after all models are loaded.

    Args:
        address: where is listened.
        wanted: option -> port, for HTTP, gRPC and metrics.

    Raises:
        PortInUse: one is taken.
        ServerError: one is no port, or the address is not this machine's.
    """
    sockets = []
    chosen = []
    try:
        for option, port in wanted.items():
            if not 0 <= port <= 65535:
                raise ServerError(f"{option} {port} is not a port; choose one from 1 to 65535, or 0 for a free one")
            probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sockets.append(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that only waits out its last use
            try:
                probe.bind((address, port))
                probe.listen(1)
            except OSError as error:
                raise _bind_error(error, option, port, address) from error
            chosen.append(probe.getsockname()[1])
    finally:
        for probe in sockets:
            probe.close()
    return Ports(*chosen)


def _bind_error(error: OSError, option: str, port: int, address: str) -> ServerError:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(
            f"port {port} on {address} is already taken; stop what listens there, or choose another with {option} "
            f"(0 picks a free one)",
            port=port,
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ServerError(f"--host {address} is not an address of this machine; use 127.0.0.1 or 0.0.0.0")
    return ServerError(f"cannot listen on port {port} of {address} ({error.strerror}); choose another with {option}")


def check_cores(cores: Sequence[int] | None) -> tuple[int, ...] | None:
    """Cores in order, if this program may use them all; raises ServerError otherwise. None stays None."""
    if cores is None:
        return None
    wanted = set(cores)
    usable: set[int] = set()
    if wanted and min(wanted) >= 0:
        # only the kernel knows what a container may use; this changes the calling thread alone, for a moment
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, wanted)
            usable = os.sched_getaffinity(0)
        except (OSError, ValueError, OverflowError):
            usable = wanted & before
        finally:
            os.sched_setaffinity(0, before)
    if not wanted or usable != wanted:
        missing = ", ".join(map(str, sorted(wanted - usable))) or "none given"
        have = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise ServerError(f"--cores: cannot use core {missing}; this machine lets this program use {have}")
    return tuple(sorted(wanted))
