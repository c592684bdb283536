"""Parts that a device computes one after the other, with nothing of the host's between them.

On a GPU, parts that do not wait for each other run on streams of their own, and calls of few rows are replayed as a
CUDA graph, so that thousands of small kernels cost one launch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tristage.serving.device import BUCKETS
from tristage.serving.device.operators import Faults
from tristage.serving.device.parts import DevicePart

__all__ = ["Made", "Stretch"]

_STREAMS = 4
_WARM_UP = 2  # calls before one is captured: kernels are compiled and libraries opened in them


@dataclass(frozen=True)
class Made:
    """What a stretch computed.

    Attributes:
        tensors: what is read after it.
        asked: what may be wrong in rows.
        flags: which of it is, on the device; None where nothing was looked at.
    """

    tensors: Mapping[str, torch.Tensor]
    asked: tuple[str, ...]
    flags: torch.Tensor | None


@dataclass(frozen=True)
class Replay:
    """A captured call.

    Attributes:
        graph: CUDA's.
        reads: where its inputs are copied to.
        made: what it leaves.
    """

    graph: Any
    reads: Mapping[str, torch.Tensor]
    made: Made


@dataclass(frozen=True)
class Stretch:
    """Parts on one device.

    Attributes:
        parts: in the order that they can be computed in.
        reads: tensors from before.
        kept: tensors that are read after it.
        faults: takes what is wrong in rows.
        replayed: whether calls of few rows are captured and replayed.
        captured: by rows; None where a call of so many cannot be captured.
        streams: those that parts run on besides the current one.
    """

    parts: tuple[DevicePart, ...]
    reads: tuple[str, ...]
    kept: tuple[str, ...]
    faults: Faults
    replayed: bool
    captured: dict[int, Replay | None] = field(default_factory=dict)
    streams: list[Any] = field(default_factory=list)

    def run(self, tensors: Mapping[str, torch.Tensor]) -> Made:
        """Compute what is read after it; nothing waits for the device.

        Args:
            tensors: for each of `reads` a tensor on the device, [rows, ...].
        """
        given = {name: tensors[name] for name in self.reads}
        rows = len(next(iter(given.values()))) if given else 0
        bucket = next((bucket for bucket in BUCKETS if rows <= bucket), None)
        if not self.replayed or bucket is None or not rows:
            return self._eager(given)
        if bucket not in self.captured:
            self.captured[bucket] = self._capture(given, bucket)
        replay = self.captured[bucket]
        if replay is None:
            return self._eager(given)
        for name, value in given.items():
            replay.reads[name][:rows].copy_(value, non_blocking=True)
            replay.reads[name][rows:].zero_()  # rows of an earlier call would be looked at again
        replay.graph.replay()
        kept = {name: value[:rows].clone() for name, value in replay.made.tensors.items()}
        return Made(kept, replay.made.asked, replay.made.flags)

    def _eager(self, given: Mapping[str, torch.Tensor]) -> Made:
        known = dict(given)
        first = next(iter(given.values()), None)
        if first is None or first.device.type != "cuda":
            for part in self.parts:
                known.update(part.run(known))
        else:
            self._abreast(known)
        asked, flags = self.faults.take()
        return Made({name: known[name] for name in self.kept}, asked, flags)

    def _abreast(self, known: dict[str, torch.Tensor]) -> None:
        """Run parts that do not wait for each other side by side.

        Every tensor between parts is held until all have ended, so that none is given away while it is read.
        """
        cuda = torch.cuda
        if not self.streams:
            self.streams.extend(cuda.Stream() for _ in range(_STREAMS))
        main = cuda.current_stream()
        begun = main.record_event()
        ended: dict[str, tuple[Any, Any]] = {}
        for number, part in enumerate(self.parts):
            stream = self.streams[number % _STREAMS]
            stream.wait_event(begun)
            for its, event in (ended[name] for name in part.reads if name in ended):
                if its is not stream:
                    stream.wait_event(event)
            with cuda.stream(stream):
                known.update(part.run(known))
            event = stream.record_event()
            ended.update({tensor.name: (stream, event) for tensor in part.outputs})
        for stream in self.streams:
            main.wait_stream(stream)

    def _capture(self, given: Mapping[str, torch.Tensor], rows: int) -> Replay | None:
        reads = {
            name: torch.zeros((rows, *value.shape[1:]), dtype=value.dtype, device=value.device)
            for name, value in given.items()
        }
        for name, value in given.items():
            reads[name][: len(value)].copy_(value)
        for _ in range(_WARM_UP):
            self._eager(reads)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                made = self._eager(reads)
        except RuntimeError as error:  # a size that is brought from the host, say
            self.faults.take()
            sys.stderr.write(f"calls of {rows} rows are not replayed: {error}\n")
            return None
        return Replay(graph, reads, made)
