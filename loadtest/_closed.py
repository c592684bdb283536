"""The closed loop: each connection sends its next request when the last one is answered."""

from __future__ import annotations

import itertools
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ServerUnavailable, TristageError
from tristage.loadtest._report import ErrorCount
from tristage.loadtest._rows import Tensors

if TYPE_CHECKING:
    from tristage.client import Transport

__all__ = ["Load", "Outcome", "closed_loop"]

_PROBE_S = 5.0  # how long a server may take to say that it is still there
_POLL_S = 0.1  # how often the main thread looks, which is how soon Ctrl-C is heard


@dataclass(frozen=True)
class Load:
    """What one cell sends.

    Attributes:
        model: the ensemble.
        outputs: the outputs asked for.
        batch: rows in each request.
        requests: different requests to go round, encoded.
        concurrency: connections.
        duration_s: seconds after which no request is begun; None: until `count` requests are sent.
        count: requests to send, by all connections together; None: for `duration_s`.
        warmup_s: seconds of requests before the clock starts; at least one a connection unless 0.
        timeout_s: seconds a request may take.
    """

    model: str
    outputs: Sequence[str]
    batch: int
    requests: Sequence[Tensors]
    concurrency: int
    duration_s: float | None
    count: int | None
    warmup_s: float
    timeout_s: float


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        nanoseconds: time of each answered request, shape [requests], int64.
        elapsed_s: from the common start to the end of the last request; of a loop cut short, to the last answer.
        errors: failed requests by kind, most frequent first.
        interrupted: Ctrl-C ended it.
        unavailable: what was said when the server went away, or None.
    """

    nanoseconds: NDArray[np.int64]
    elapsed_s: float
    errors: tuple[ErrorCount, ...]
    interrupted: bool
    unavailable: ServerUnavailable | None


@dataclass
class _Worker:
    """One connection's notes; written by its own thread only."""

    nanoseconds: array[int] = field(default_factory=lambda: array("q"))
    kinds: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    last_answer: int = 0
    last_end: int = 0


class _Loop:
    """What the threads of one closed loop share."""

    def __init__(self, load: Load, connect: Callable[[], Transport]) -> None:
        self.load = load
        self.connect = connect
        self.workers = [_Worker() for _ in range(load.concurrency)]
        self.warm = threading.Semaphore(0)
        self.go = threading.Event()
        self.stop = threading.Event()
        self.start = 0
        self.tickets = itertools.count()  # next() is one step for all threads
        self.unavailable: ServerUnavailable | None = None
        self.bug: BaseException | None = None

    def run(self, index: int) -> None:
        """One connection, from its opening to its closing, all in one thread."""
        try:
            transport = self.connect()
            try:
                self._drive(transport, index)
            finally:
                transport.close()
        except ServerUnavailable as error:
            self._give_up(error)
        except BaseException as error:  # a fault of ours: the main thread raises it
            self.bug = self.bug or error
            self.stop.set()
        finally:
            self.warm.release()

    def _drive(self, transport: Transport, index: int) -> None:
        load, worker = self.load, self.workers[index]
        # connections begin at different rows
        first = index * len(load.requests) // load.concurrency
        requests = itertools.cycle([*load.requests[first:], *load.requests[:first]])

        trial = _Worker()
        begun = time.perf_counter_ns()
        while load.warmup_s and not self.stop.is_set():
            self._call(transport, next(requests), trial)
            if time.perf_counter_ns() - begun >= load.warmup_s * 1e9:
                break
        self.warm.release()
        self.go.wait()

        deadline = None if load.duration_s is None else self.start + int(load.duration_s * 1e9)
        while not self.stop.is_set():
            if load.count is not None and next(self.tickets) >= load.count:
                break
            self._call(transport, next(requests), worker)
            if deadline is not None and worker.last_end >= deadline:
                break

    def _call(self, transport: Transport, request: Tensors, worker: _Worker) -> None:
        load = self.load
        begin = time.perf_counter_ns()
        try:
            transport.infer(load.model, request, load.outputs, load.timeout_s)
        except TristageError as error:
            worker.last_end = time.perf_counter_ns()
            worker.kinds[type(error).__name__] += 1
            worker.messages.setdefault(type(error).__name__, str(error))
            if isinstance(error, ServerUnavailable) and not self._still_there(transport):
                self._give_up(error)
            return
        end = time.perf_counter_ns()
        worker.nanoseconds.append(end - begin)
        worker.last_answer = worker.last_end = end

    def _still_there(self, transport: Transport) -> bool:
        """Whether one lost request was only that."""
        try:
            return transport.ready(self.load.model, min(self.load.timeout_s, _PROBE_S))
        except TristageError:
            return False

    def _give_up(self, error: ServerUnavailable) -> None:
        self.unavailable = self.unavailable or error
        self.stop.set()


def closed_loop(
    load: Load,
    connect: Callable[[], Transport],
    *,
    started: Callable[[], None] = lambda: None,
    watch: Callable[[int, float], None] = lambda answered, elapsed_s: None,
) -> Outcome:
    """Run one cell: a thread and a connection each, warm-up, a common start, and what each request took.

    Ctrl-C ends the loop after the requests on their way; a second one leaves at once.

    Args:
        load: what to send.
        connect: opens a connection; called in the thread that uses it.
        started: called after warm-up, just before the clock starts.
        watch: called now and then with the requests answered and the seconds gone.
    """
    loop = _Loop(load, connect)
    # daemons, so that a second Ctrl-C need not wait for a request's timeout
    threads = [threading.Thread(target=loop.run, args=(index,), daemon=True) for index in range(load.concurrency)]
    for thread in threads:
        thread.start()
    interrupted = False
    try:
        for _ in threads:
            while not loop.warm.acquire(timeout=_POLL_S):
                pass
        if not loop.stop.is_set():
            started()
        loop.start = time.perf_counter_ns()
        loop.go.set()
        while alive := [thread for thread in threads if thread.is_alive()]:
            watch(sum(len(worker.nanoseconds) for worker in loop.workers), (time.perf_counter_ns() - loop.start) / 1e9)
            alive[0].join(_POLL_S)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        loop.stop.set()
        loop.go.set()
    for thread in threads:
        thread.join()
    if loop.bug is not None:
        raise loop.bug
    return _outcome(loop, interrupted)


def _outcome(loop: _Loop, interrupted: bool) -> Outcome:
    kinds: Counter[str] = Counter()
    messages: dict[str, str] = {}
    for worker in loop.workers:
        kinds += worker.kinds
        for kind, message in worker.messages.items():
            messages.setdefault(kind, message)
    # a loop cut short waited for a dead server or for nothing; that is no part of what an example took
    cut = interrupted or loop.unavailable is not None
    end = max(worker.last_answer if cut else worker.last_end for worker in loop.workers)
    return Outcome(
        nanoseconds=np.concatenate([np.array(worker.nanoseconds, dtype=np.int64) for worker in loop.workers]),
        elapsed_s=max(end - loop.start, 0) / 1e9,
        errors=tuple(ErrorCount(kind, count, messages[kind]) for kind, count in kinds.most_common()),
        interrupted=interrupted,
        unavailable=loop.unavailable,
    )
