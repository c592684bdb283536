"""gRPC whose tensors lie in system shared memory: the server reads requests and writes answers where both can see them.

Every request of a batch size lies in one region, written before the clock starts; each connection has a region for its
answers. Strings have no length that is known beforehand, so outputs of strings travel in the message.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.client import _wire
from tristage.client._late import Late
from tristage.client._transport import GrpcTransport
from tristage.client._wire import Address
from tristage.columns import DTYPES, Column
from tristage.errors import InferenceFailed, InputError, ServerError
from tristage.loadtest._http2 import Http2
from tristage.loadtest._wire import INFER, Sender, Tensors, check_rows

__all__ = ["SharedMemoryWire"]

_ALIGN = 64
_FOLDER = Path("/dev/shm")  # noqa: S108  where shm_open(3) puts regions
_ASK_S = 10.0


class SharedMemoryWire:
    """gRPC with system shared memory, for a server on this machine that sees the same /dev/shm."""

    protocol = "grpc+shm"

    def __init__(self, address: Address, model: str, outputs: Sequence[Column], most_rows: int) -> None:
        """Nothing is made before `encode`.

        Args:
            address: the server, gRPC.
            model: the ensemble.
            outputs: the outputs asked for.
            most_rows: rows of the largest request, for which each connection's region has room.
        """
        self._address = address
        self._model = model
        self._outputs = tuple(outputs)
        self._most_rows = most_rows
        self._name = f"tristage-loadtest-{secrets.token_hex(6)}"
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._inputs: _Region | None = None
        self._late = Late()

    def encode(self, requests: Sequence[Tensors]) -> list[bytes]:
        from tritonclient.grpc import service_pb2

        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        blobs = [{name: _wire.to_bytes(name, values) for name, values in request.items()} for request in requests]
        region = self._inputs = self.region(sum(_aligned(len(blob)) for request in blobs for blob in request.values()))
        messages, at = [], 0
        for request, tensors in zip(blobs, requests, strict=True):
            message = service_pb2.ModelInferRequest(model_name=self._model)
            for name, blob in request.items():
                values = tensors[name]
                tensor = message.inputs.add(name=name, datatype=_wire.triton_name(name, values), shape=values.shape)
                _place(tensor, region.name, at, len(blob))
                region.bytes[at : at + len(blob)] = blob
                at += _aligned(len(blob))
            messages.append(message.SerializeToString())
        return messages

    def open(self, timeout: float) -> Sender:
        return _SharedMemorySender(self, Http2(self._address, INFER, self._model, timeout, self._late))

    def check(self, answer: tuple[bytes, _Answers], rows: int) -> None:
        from tritonclient.grpc import service_pb2

        raw, answers = answer
        message = service_pb2.ModelInferResponse.FromString(raw)
        found: dict[str, NDArray[Any]] = {}
        try:
            for output, data in zip(message.outputs, message.raw_output_contents, strict=True):
                if output.name in answers.places:  # then the message holds nothing
                    data = answers.read(output.name, output.datatype, output.shape)
                found[output.name] = _wire.from_bytes(data, output.datatype, output.shape)
            check_rows({column.name: found[column.name] for column in self._outputs}, rows)
        except (KeyError, ValueError) as error:
            raise _wire.malformed(self._address.url, _wire.asked("infer", self._model), error) from error

    def close(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None

    def region(self, size: int) -> _Region:
        """A new region of `size` bytes that the server knows."""
        with self._lock:
            name = f"{self._name}-{next(self._numbers)}"
        return _Region(name, max(size, 1), self._address)

    def answers(self) -> _Answers:
        """Room for the answers of one connection."""
        from tritonclient.grpc import service_pb2

        places, end = {}, 0
        for column in self._outputs:
            if column.dtype != "string":
                places[column.name] = end
                end += _aligned(self._most_rows * column.width * column.numpy_dtype.itemsize)
        region = self.region(end)
        message = service_pb2.ModelInferRequest()
        for column in self._outputs:
            tensor = message.outputs.add(name=column.name)
            if column.name in places:
                size = _aligned(self._most_rows * column.width * column.numpy_dtype.itemsize)
                _place(tensor, region.name, places[column.name], size)
        return _Answers(region, places, message.SerializeToString())


@dataclass(frozen=True)
class _Answers:
    """Where the answers of one connection go: output -> offset, and the end of a message that says so."""

    region: _Region
    places: dict[str, int]
    message: bytes

    def read(self, name: str, triton_dtype: str, shape: Sequence[int]) -> bytes:
        size = math.prod(shape) * next(np.dtype(dtype).itemsize for dtype, of in DTYPES.values() if of == triton_dtype)
        return bytes(self.region.bytes[self.places[name] : self.places[name] + size])


class _SharedMemorySender:
    def __init__(self, wire: SharedMemoryWire, sender: Http2) -> None:
        self._sender = sender
        self._answers = wire.answers()

    def send(self, request: bytes) -> tuple[bytes, _Answers]:
        return self._sender.send(request + self._answers.message), self._answers  # joined messages are merged messages

    def close(self) -> None:
        self._sender.close()
        self._answers.region.close()


class _Region:
    """A region of /dev/shm that the server has opened too."""

    def __init__(self, name: str, size: int, address: Address) -> None:
        self.name = name
        self._address = address
        try:
            self.memory = SharedMemory(name, create=True, size=size)
        except OSError as error:
            raise _no_room(size, error) from error
        assert self.memory.buf is not None  # not before it is closed
        self.bytes = self.memory.buf
        try:
            # else a full /dev/shm is a SIGBUS at the first write
            with (_FOLDER / name).open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            self._ask("SystemSharedMemoryRegister", name=name, key=f"/{name}", byte_size=size)
        except OSError as error:
            self._drop()
            raise _no_room(size, error) from error
        except InferenceFailed as error:
            self._drop()
            raise ServerError(
                f"{address.url} cannot open this machine's shared memory ({error}); it must run on this machine, as "
                "the same user and with the same /dev/shm; else measure over grpc"
            ) from error
        except BaseException:
            self._drop()
            raise

    def close(self) -> None:
        """Take it back from the server, where that still answers, and remove it."""
        with contextlib.suppress(ServerError):
            self._ask("SystemSharedMemoryUnregister", name=self.name)
        self._drop()

    def _drop(self) -> None:
        self.memory.close()
        with contextlib.suppress(FileNotFoundError):
            self.memory.unlink()

    def _ask(self, method: str, **fields: Any) -> None:
        from tritonclient.grpc import service_pb2

        request = getattr(service_pb2, f"{method}Request")(**fields)
        with contextlib.closing(GrpcTransport(self._address)) as transport:
            transport.call(method, request, f"the region {self.name}", _ASK_S)


def _no_room(size: int, error: OSError) -> InputError:
    return InputError(
        f"no shared memory of {size / 1e6:,.1f} MB ({error}); give /dev/shm more room, or measure over grpc"
    )


def _place(tensor: Any, region: str, at: int, size: int) -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_offset"].int64_param = at
    tensor.parameters["shared_memory_byte_size"].int64_param = size


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
