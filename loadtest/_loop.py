"""The threads that send: in a closed loop, or in an open one that keeps its own time.

Closed: each connection sends its next request when the last one is answered. Open: requests are due at certain times,
whatever the server does, and a request's time counts from then; so a request that waited for a stalled server, for a
connection or for this program counts that wait. (A closed loop sends less while a server stalls, and so leaves out the
very requests that would have waited: coordinated omission.)
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ServerUnavailable, TristageError
from tristage.loadtest._report import ErrorCount
from tristage.loadtest._wire import Sender, Wire

__all__ = ["OVERDUE", "Load", "Outcome", "Samples", "run_loop"]

OVERDUE = "Overdue"
_PR_SET_TIMERSLACK = 29
_POLL_S = 0.1  # how often the main thread looks, which is how soon Ctrl-C is heard
_NAP_NS = 50_000_000  # the longest sleep of a connection that waits for its next request to be due
_WARM_FOR_LONG = 4  # connections of an open loop that warm up for all the time; the others send one request


@dataclass(frozen=True)
class Load:
    """What one cell sends.

    Attributes:
        batch: rows in each request.
        requests: different requests to go round, as the wire encoded them.
        concurrency: connections.
        duration_s: seconds after which no request is begun.
        count: requests to send, by all connections together, where that is fewer; None: any number.
        warmup_s: seconds of requests before the clock starts; at least one a connection unless 0.
        timeout_s: seconds a request may take; in an open loop from when it was due.
        due_ns: open loop: nanoseconds from the start at which requests are due, ascending, int64 [requests];
            None: closed loop.
        limit_s: seconds that no more than `misses` requests may take longer than: with one more, the rest of the cell
            is not worth measuring; None: no such limit.
        misses: see there.
    """

    batch: int
    requests: Sequence[Any]
    concurrency: int
    duration_s: float
    count: int | None
    warmup_s: float
    timeout_s: float
    due_ns: NDArray[np.int64] | None = None
    limit_s: float | None = None
    misses: int = 0


@dataclass(frozen=True)
class Samples:
    """Answered requests in the order of their answers, int64 nanoseconds, each of shape [requests].

    Attributes:
        took_ns: from sending (closed) or being due (open) to the answer.
        ended_ns: from the common start to the answer.
        late_ns: how long after it was due each was sent; zeros in a closed loop.
    """

    took_ns: NDArray[np.int64]
    ended_ns: NDArray[np.int64]
    late_ns: NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        samples: the answered requests.
        elapsed_s: from the common start to the end of the last request; of a loop cut short, to the last answer.
        client_cpu_s: CPU seconds of this process in that time.
        errors: failed requests by kind, most frequent first.
        settled: whether `settled` ended it.
        gave_up: whether more than `Load.misses` requests took longer than `Load.limit_s`.
        interrupted: Ctrl-C ended it.
        unavailable: what was said when the server went away, or None.
    """

    samples: Samples
    elapsed_s: float
    client_cpu_s: float
    errors: tuple[ErrorCount, ...]
    settled: bool
    gave_up: bool
    interrupted: bool
    unavailable: ServerUnavailable | None


@dataclass
class _Worker:
    """One connection's notes; written by its own thread only."""

    took: array[int] = field(default_factory=lambda: array("q"))
    ended: array[int] = field(default_factory=lambda: array("q"))
    late: array[int] = field(default_factory=lambda: array("q"))
    kinds: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    last_end: int = 0

    def fail(self, kind: str, message: str) -> None:
        self.kinds[kind] += 1
        self.messages.setdefault(kind, message)


class _Loop:
    """What the threads of one loop share."""

    def __init__(self, load: Load, wire: Wire, still_there: Callable[[], bool]) -> None:
        self.load = load
        self.wire = wire
        self.still_there = still_there
        self.workers = [_Worker() for _ in range(load.concurrency)]
        self.due = None if load.due_ns is None else load.due_ns.tolist()
        self.warm = threading.Semaphore(0)
        self.go = threading.Event()
        self.stop = threading.Event()
        self.start = 0
        self.deadline = 0  # nothing is begun (closed) or due (open) from then on
        self.tickets = itertools.count()  # next() is one step for all threads
        self.missed = itertools.count(1)
        self.gave_up = False
        self.unavailable: ServerUnavailable | None = None
        self.bug: BaseException | None = None

    def run(self, index: int) -> None:
        """One connection, from its opening to its closing, all in one thread."""
        try:
            sender = self.wire.open(self.load.timeout_s)
            try:
                self._warm_up(sender, index)
                self.warm.release()
                self.go.wait()
                if self.due is None:
                    self._send_closed(sender, index)
                else:
                    self._send_open(sender, index, self.due)
            finally:
                sender.close()
        except ServerUnavailable as error:
            self._give_up(error)
        except BaseException as error:  # a fault of ours, or an answer that is none: the main thread raises it
            self.bug = self.bug or error
            self.stop.set()
        finally:
            self.warm.release()

    def _warm_up(self, sender: Sender, index: int) -> None:
        load, trial = self.load, _Worker()
        begun = time.perf_counter_ns()
        long = self.due is None or index < _WARM_FOR_LONG
        for request in self._round(index):
            if not load.warmup_s or self.stop.is_set():
                return
            self._call(sender, request, trial, time.perf_counter_ns())
            if not long or time.perf_counter_ns() - begun >= load.warmup_s * 1e9:
                return

    def _send_closed(self, sender: Sender, index: int) -> None:
        load, worker = self.load, self.workers[index]
        for request in self._round(index):
            if self.stop.is_set() or (load.count is not None and next(self.tickets) >= load.count):
                return
            self._call(sender, request, worker, time.perf_counter_ns())
            if worker.last_end >= self.deadline:
                return

    def _send_open(self, sender: Sender, index: int, due_ns: Sequence[int]) -> None:
        _wake_on_time()
        load, worker = self.load, self.workers[index]
        patience = int(load.timeout_s * 1e9)
        while (number := next(self.tickets)) < len(due_ns):
            due = self.start + due_ns[number]
            while True:
                if self.stop.is_set() or due >= self.deadline:
                    return
                wait = due - time.perf_counter_ns()
                if wait <= 0:
                    break
                time.sleep(min(wait, _NAP_NS) / 1e9)
            if -wait > patience:
                worker.fail(OVERDUE, f"not sent within {load.timeout_s:g} s: every connection was waiting for answers")
                worker.last_end = time.perf_counter_ns()
                continue
            self._call(sender, load.requests[number % len(load.requests)], worker, due)

    def _round(self, index: int) -> itertools.cycle[Any]:
        """All requests over and over; connections begin at different ones."""
        requests, first = self.load.requests, index * len(self.load.requests) // self.load.concurrency
        return itertools.cycle([*requests[first:], *requests[:first]])

    def _call(self, sender: Sender, request: Any, worker: _Worker, due: int) -> None:
        begin = time.perf_counter_ns()
        try:
            answer = sender.send(request)
        except TristageError as error:
            worker.last_end = time.perf_counter_ns()
            worker.fail(type(error).__name__, str(error))
            if isinstance(error, ServerUnavailable) and not self.still_there():
                self._give_up(error)
            return
        end = time.perf_counter_ns()
        if not worker.took:
            self.wire.check(answer, self.load.batch)
        worker.took.append(end - due)
        worker.late.append(begin - due)
        worker.ended.append(end)  # the last of the three, so that those who read along find all of them
        worker.last_end = end
        limit_s = self.load.limit_s
        if self.start and limit_s is not None and end - due > limit_s * 1e9 and next(self.missed) > self.load.misses:
            self.gave_up = True
            self.stop.set()

    def _give_up(self, error: ServerUnavailable) -> None:
        self.unavailable = self.unavailable or error
        self.stop.set()

    def samples(self) -> Samples:
        """What was answered so far."""
        lengths = [len(worker.ended) for worker in self.workers]
        ended, took, late = (
            np.concatenate(
                [
                    np.array(notes[:length], dtype=np.int64)
                    for notes, length in zip((getattr(w, name) for w in self.workers), lengths, strict=True)
                ]
            )
            for name in ("ended", "took", "late")
        )
        order = np.argsort(ended, kind="stable")
        return Samples(took[order], ended[order] - self.start, late[order])


def _wake_on_time() -> None:
    """Have Linux end this thread's sleeps within a microsecond of their time; it may take 50 else."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)


def run_loop(
    load: Load,
    wire: Wire,
    still_there: Callable[[], bool],
    *,
    started: Callable[[], None] = lambda: None,
    settled: Callable[[Samples], bool] | None = None,
    watch: Callable[[int, float], None] = lambda answered, elapsed_s: None,
) -> Outcome:
    """Run one cell: a thread and a connection each, warm-up, a common start, and what each request took.

    Ctrl-C ends the loop after the requests on their way; a second one leaves at once.

    Args:
        load: what to send.
        wire: what carries it.
        still_there: asked after a request that was lost, whether the server is.
        started: called after warm-up, just before the clock starts.
        settled: asked now and then whether what was answered so far is enough.
        watch: called now and then with the requests answered and the seconds gone.

    Raises:
        InferenceFailed: an answer lacks an output or rows.
    """
    loop = _Loop(load, wire, still_there)
    # daemons, so that a second Ctrl-C need not wait for a request's timeout
    threads = [threading.Thread(target=loop.run, args=(index,), daemon=True) for index in range(load.concurrency)]
    for thread in threads:
        thread.start()
    interrupted = enough = False
    cpu = 0.0
    try:
        for _ in threads:
            while not loop.warm.acquire(timeout=_POLL_S):
                pass
        if not loop.stop.is_set():
            started()
        cpu = time.process_time()
        loop.start = time.perf_counter_ns()
        loop.deadline = loop.start + int(load.duration_s * 1e9)
        loop.go.set()
        next_look = 100  # answers; looking costs time that is taken from the threads, so ever more rarely
        while alive := [thread for thread in threads if thread.is_alive()]:
            answered = sum(len(worker.ended) for worker in loop.workers)
            watch(answered, (time.perf_counter_ns() - loop.start) / 1e9)
            if settled is not None and not enough and answered >= next_look:
                next_look = answered + answered // 5
                enough = settled(loop.samples())
                if enough:
                    loop.deadline = min(loop.deadline, time.perf_counter_ns())
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
    return _outcome(loop, interrupted, enough, time.process_time() - cpu)


def _outcome(loop: _Loop, interrupted: bool, settled: bool, client_cpu_s: float) -> Outcome:
    kinds: Counter[str] = Counter()
    messages: dict[str, str] = {}
    for worker in loop.workers:
        kinds += worker.kinds
        for kind, message in worker.messages.items():
            messages.setdefault(kind, message)
    samples = loop.samples()
    # a loop cut short waited for a dead server or for nothing; that is no part of what an example took
    cut = interrupted or loop.unavailable is not None
    last_answer = int(samples.ended_ns[-1]) if len(samples.ended_ns) else 0
    last = last_answer if cut else max(worker.last_end for worker in loop.workers) - loop.start
    return Outcome(
        samples=samples,
        elapsed_s=max(last, 0) / 1e9,
        client_cpu_s=client_cpu_s,
        errors=tuple(ErrorCount(kind, count, messages[kind]) for kind, count in kinds.most_common()),
        settled=settled,
        gave_up=loop.gave_up,
        interrupted=interrupted,
        unavailable=loop.unavailable,
    )
