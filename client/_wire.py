"""What both kinds of transport, blocking and asyncio, have in common: addresses, bodies, answers and errors.

The bodies are built here and not by tritonclient's own classes for two reasons: those serialise strings one by one in
Python, which costs more than a stack's forests do, and over HTTP they tie a connection to the gevent hub of the thread
that made it, with one time limit for its whole life. The messages are the same: KServe's v2 protocol with binary
tensors over HTTP, and tritonclient's protobuf classes over gRPC.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from tristage.client._http2 import ConnectionClosed
from tristage.columns import DTYPES
from tristage.errors import AnswerTooLate, InferenceFailed, InputError, ServerUnavailable

__all__ = ["Address", "Protocol", "Tensors", "parse_url"]

Protocol = Literal["http", "grpc"]
Tensors = dict[str, NDArray[Any]]

HEADER_LENGTH = "Inference-Header-Content-Length"
_DEFAULT_PORTS: Mapping[str, int] = {"http": 8000, "grpc": 8001}
_TRITON_NAMES = {np.dtype(numpy_name): triton for numpy_name, triton in DTYPES.values()}
_NUMPY_DTYPES = {triton: dtype for dtype, triton in _TRITON_NAMES.items()}

_FEW = 16  # strings that are written faster one by one than by NumPy


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        protocol: "http" or "grpc".
        host: a name or an address, without brackets.
        port: its TCP port.
        path: what an HTTP server's paths begin with, "" at a server of its own.
    """

    protocol: Protocol
    host: str
    port: int
    path: str = ""

    @property
    def target(self) -> str:
        """host:port, with the brackets that an IPv6 address needs."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole URL, as messages name it."""
        return f"{self.protocol}://{self.target}{self.path}"


def parse_url(url: str, protocol: Protocol | None = None) -> Address:
    """Read "http://host:8000", "grpc://host:8001" or "host:port".

    Args:
        url: the server's URL; the port defaults to Triton's own, 8000 or 8001.
        protocol: what a URL without a scheme is taken for; "http" where neither says.

    Raises:
        InputError: the URL cannot be read, or contradicts `protocol`.
    """
    if protocol not in (None, "http", "grpc"):
        raise InputError(f'protocol "{protocol}" is not known; use "http" or "grpc"')
    full = url if "://" in url else f"{protocol or 'http'}://{url}"
    try:
        parts = urlsplit(full)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(
            f'the URL "{url}" cannot be read ({error}); write http://HOST:8000 or grpc://HOST:8001'
        ) from error
    if parts.scheme not in _DEFAULT_PORTS or not host or parts.query or parts.fragment or parts.username:
        raise InputError(f'the URL "{url}" is not a server\'s; write http://HOST:8000 or grpc://HOST:8001')
    if protocol is not None and parts.scheme != protocol:
        raise InputError(
            f'the URL "{url}" says {parts.scheme} and the protocol asked for is {protocol}; drop one of them'
        )
    path = parts.path.rstrip("/")
    if path and parts.scheme == "grpc":
        raise InputError(f'the URL "{url}" has a path, which gRPC does not know; write grpc://{host}:{port or 8001}')
    return Address(cast(Protocol, parts.scheme), host, port if port is not None else _DEFAULT_PORTS[parts.scheme], path)


# ---------------------------------------------------------------------------------------------------------- errors


def asked(kind: str, model: str = "") -> str:
    """What was asked, as messages say it: the questions are "ready", "config", "stats" and "infer"."""
    if kind == "infer":
        return f'the request to "{model}"'
    things = {"ready": "readiness", "config": "the configuration", "stats": "the statistics"}
    about = f'"{model}"' if model else "its models"
    return f"the request for {things[kind]} of {about}"


def unavailable(url: str, reason: object) -> ServerUnavailable:
    """Nothing answers at `url`, or what answered went away."""
    words = str(reason).strip().rstrip(".") or type(reason).__name__
    return ServerUnavailable(
        f"no server answers at {url} ({words}); start one with `tristage serve REPOSITORY`, or correct the URL", url=url
    )


def too_late(url: str, timeout: float) -> AnswerTooLate:
    """The server took longer than it was given."""
    return AnswerTooLate(
        f"{url} did not answer within {timeout:g} s; is it running and not overloaded? Start one with "
        "`tristage serve REPOSITORY`, send fewer rows at once, or allow a longer timeout",
        url=url,
    )


def closed(url: str) -> ServerUnavailable:
    """The caller closed the connection already."""
    return ServerUnavailable(f"the connection to {url} was closed; make a new one", url=url)


def refused(url: str, what: str, message: str, status: str) -> InferenceFailed:
    """The server answered, and the answer was no."""
    words = message.strip() or "it gave no reason"
    return InferenceFailed(f"{url} refused {what} [{status}]: {words}", status=status)


def malformed(url: str, what: str, error: Exception) -> InferenceFailed:
    """The server answered what nobody can read; it is hardly a Triton."""
    return InferenceFailed(
        f"{url} answered {what} with what cannot be read ({type(error).__name__}: {error}); is it a Triton server?"
    )


def http_error(url: str, what: str, status: int, body: bytes, timeout: float) -> ServerUnavailable | InferenceFailed:
    """An HTTP answer that is not 200 as one of our errors."""
    try:
        raw = json.loads(body)
        message = str(raw["error"]) if isinstance(raw, dict) and "error" in raw else body.decode("utf-8", "replace")
    except ValueError:
        message = body.decode("utf-8", "replace")[:500]
    if status in (502, 503):
        return unavailable(url, f"HTTP {status}: {message}")
    return too_late(url, timeout) if status == 504 else refused(url, what, message, str(status))


class grpc_faults:  # noqa: N801  reads as a phrase
    """What goes wrong with a gRPC call inside as one of our errors."""

    __slots__ = ("_timeout", "_url", "_what")

    def __init__(self, url: str, what: str, timeout: float) -> None:
        self._url, self._what, self._timeout = url, what, timeout

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if error is None:
            return
        from google.protobuf.message import DecodeError

        if isinstance(error, (TimeoutError, asyncio.TimeoutError)):  # two classes before Python 3.11
            raise too_late(self._url, self._timeout) from error
        if isinstance(error, ConnectionClosed):
            raise closed(self._url) from error
        if isinstance(error, (OSError, UnicodeError)):
            raise unavailable(self._url, error) from error
        if isinstance(error, (ValueError, LookupError, DecodeError)):
            raise malformed(self._url, self._what, error) from error


def check_status(url: str, what: str, status: int, words: str, timeout: float) -> None:
    """Raise a gRPC status that is not 0 as one of our errors."""
    if not status:
        return
    import grpc

    name = next((code.name for code in grpc.StatusCode if code.value[0] == status), "UNKNOWN")
    if name in ("UNAVAILABLE", "CANCELLED"):  # nobody here cancels; a server that ends does
        raise unavailable(url, words or name)
    raise too_late(url, timeout) if name == "DEADLINE_EXCEEDED" else refused(url, what, words, name)


# --------------------------------------------------------------------------------------------------------- tensors


def triton_name(name: str, array: NDArray[Any]) -> str:
    """Triton's name of an array's dtype.

    Raises:
        InputError: Triton has none for it.
    """
    try:
        return _TRITON_NAMES[array.dtype]
    except KeyError:
        raise InputError(
            f'column "{name}" is an array of {array.dtype}, which Triton does not take; use one of {", ".join(DTYPES)} '
            "(strings as an object array)",
            column=name,
        ) from None


def to_bytes(name: str, array: NDArray[Any]) -> bytes:
    """An array's bytes as Triton reads them: row-major, little-endian; strings each behind their uint32 length.

    Raises:
        InputError: something in an object array is not a string of UTF-8.
    """
    if array.dtype != np.dtype(object):
        return array.tobytes()
    try:
        parts = [text.encode() for text in array.ravel().tolist()]
    except (AttributeError, UnicodeEncodeError) as error:
        raise InputError(f'column "{name}" holds what is not a string of UTF-8 ({error})', column=name) from error
    if len(parts) <= _FEW:
        return b"".join([len(part).to_bytes(4, "little") + part for part in parts])
    lengths = np.fromiter(map(len, parts), dtype="<u4", count=len(parts))
    ends = np.cumsum(lengths.astype(np.int64) + 4)
    heads = (ends - lengths - 4)[:, None] + np.arange(4)
    whole = np.empty(int(ends[-1]), dtype=np.uint8)
    is_text = np.ones(len(whole), dtype=bool)
    is_text[heads] = False
    whole[heads] = lengths.view(np.uint8).reshape(-1, 4)
    whole[is_text] = np.frombuffer(b"".join(parts), dtype=np.uint8)
    return whole.tobytes()


def from_bytes(data: bytes | memoryview, triton_dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    """The array that `to_bytes` wrote.

    Raises:
        ValueError, KeyError: the bytes do not fit the dtype and the shape; the caller names the server.
    """
    if triton_dtype != "BYTES":
        return np.frombuffer(data, dtype=_NUMPY_DTYPES[triton_dtype]).reshape(shape)
    whole, texts, at = bytes(data), [], 0
    while at < len(whole):
        start = at + 4
        at = start + int.from_bytes(whole[at:start], "little")
        texts.append(whole[start:at].decode())
    if at != len(whole):
        raise ValueError("a string is cut short")
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(shape)


# ------------------------------------------------------------------------------------------------------------ HTTP


def http_path(address: Address, kind: str, model: str = "") -> str:
    """The path of one question."""
    if not model:
        return f"{address.path}/v2/health/ready" if kind == "ready" else f"{address.path}/v2/models/{kind}"
    return f"{address.path}/v2/models/{quote(model, safe='')}/{kind}"


def http_request(inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> tuple[bytes, dict[str, str]]:
    """The body of an inference request, and the HTTP headers that go with it."""
    blobs = {name: to_bytes(name, array) for name, array in inputs.items()}
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": triton_name(name, array),
                    "parameters": {"binary_data_size": len(blobs[name])},
                }
                for name, array in inputs.items()
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
        },
        separators=(",", ":"),
    ).encode()
    headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
    return b"".join([header, *blobs.values()]), headers


def http_answer(url: str, model: str, body: bytes, header_length: str | None, outputs: Sequence[str]) -> Tensors:
    """The tensors of an inference answer, in the order of `outputs`.

    Raises:
        InferenceFailed: it cannot be read, or lacks an output.
    """
    try:
        at = len(body) if header_length is None else int(header_length)
        found: Tensors = {}
        for output in json.loads(body[:at])["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                raise ValueError(f"output {output['name']} is not binary")
            found[output["name"]] = from_bytes(memoryview(body)[at : at + size], output["datatype"], output["shape"])
            at += size
        return {name: found[name] for name in outputs}
    except (ValueError, KeyError, TypeError) as error:
        raise malformed(url, asked("infer", model), error) from error


def http_object(url: str, kind: str, model: str, body: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        InferenceFailed: it is none.
    """
    try:
        return dict(json.loads(body))
    except (ValueError, TypeError) as error:
        raise malformed(url, asked(kind, model), error) from error


def model_names(url: str, statistics: Mapping[str, Any]) -> list[str]:
    """Names of the ready models, sorted, from the statistics of all: the repository's index may be closed to callers.

    Raises:
        InferenceFailed: they are no statistics.
    """
    try:
        return sorted({str(entry["name"]) for entry in statistics.get("model_stats", [])})
    except (KeyError, AttributeError, TypeError) as error:
        raise malformed(url, asked("stats"), error) from error


# ------------------------------------------------------------------------------------------------------------ gRPC


def grpc_question(kind: str, model: str) -> tuple[str, Any]:
    """The method for one question, and its message."""
    from tritonclient.grpc import service_pb2

    if kind == "ready" and not model:
        return "ServerReady", service_pb2.ServerReadyRequest()
    method = {"ready": "ModelReady", "config": "ModelConfig", "stats": "ModelStatistics"}[kind]
    return method, getattr(service_pb2, f"{method}Request")(name=model)


def grpc_message(method: str, body: bytes) -> Any:
    """The message that a method answers.

    Raises:
        DecodeError: `body` is none.
    """
    from tritonclient.grpc import service_pb2

    return getattr(service_pb2, f"{method}Response").FromString(body)


def grpc_request(model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Any:
    """The ModelInferRequest that says what `http_request` does."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=triton_name(name, array), shape=array.shape)
        request.raw_input_contents.append(to_bytes(name, array))
    for name in outputs:
        request.outputs.add(name=name)
    return request


def grpc_answer(url: str, model: str, answer: Any, outputs: Sequence[str]) -> Tensors:
    """The tensors of a ModelInferResponse, in the order of `outputs`.

    Raises:
        InferenceFailed: it cannot be read, or lacks an output.
    """
    try:
        if len(answer.outputs) != len(answer.raw_output_contents):
            raise ValueError("an output is not binary")
        found = {
            output.name: from_bytes(raw, output.datatype, output.shape)
            for output, raw in zip(answer.outputs, answer.raw_output_contents)  # noqa: B905 - of one length, checked
        }
        return {name: found[name] for name in outputs}
    except (ValueError, KeyError, TypeError) as error:
        raise malformed(url, asked("infer", model), error) from error


def to_dict(message: Any) -> dict[str, Any]:
    """A protobuf message as the JSON that Triton answers over HTTP: field names kept, integers as integers.

    protobuf's own MessageToDict writes 64-bit integers as strings and leaves out what is zero.
    """
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields if _has(message, field)}


def _is_message(field: Any) -> bool:
    return bool(field.type in (field.TYPE_MESSAGE, field.TYPE_GROUP))


def _repeated(field: Any) -> bool:
    repeated = getattr(field, "is_repeated", None)  # protobuf >= 6.31; `label` goes away
    return bool(field.label == field.LABEL_REPEATED if repeated is None else repeated)


def _has(message: Any, field: Any) -> bool:
    return True if _repeated(field) or not field.has_presence else bool(message.HasField(field.name))


def _field(message: Any, field: Any) -> Any:
    value = getattr(message, field.name)
    if not _repeated(field):
        return _scalar(value, field)
    if _is_message(field) and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {str(key): _scalar(value[key], inner) for key in value}
    return [_scalar(item, field) for item in value]


def _scalar(value: Any, field: Any) -> Any:
    if _is_message(field):
        return to_dict(value)
    if field.type == field.TYPE_ENUM:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
