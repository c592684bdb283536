"""The same connection as `_transport`'s for asyncio: the same questions, bodies and errors, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from tristage.client import _wire
from tristage.client._async_line import Calls
from tristage.client._http2 import header_block, method_path, opening_headers
from tristage.client._late import MOST
from tristage.client._wire import Address, Tensors
from tristage.errors import InferenceFailed

if TYPE_CHECKING:
    import aiohttp

    from tristage.client._row import OneRow

__all__ = ["AsyncTransport", "connect_async"]


class AsyncTransport(Protocol):
    """`Transport` with coroutines; for one event loop, and any number of its tasks at once."""

    url: str

    async def ready(self, model: str, timeout: float) -> bool:
        """As `Transport.ready`."""
        ...

    async def config(self, model: str, timeout: float) -> dict[str, Any]:
        """As `Transport.config`."""
        ...

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        timeout: float,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Tensors:
        """As `Transport.infer`; `headers` go along (over gRPC as metadata: in lower case), for the server's traces."""
        ...

    async def statistics(self, model: str, timeout: float) -> dict[str, Any]:
        """As `Transport.statistics`."""
        ...

    async def models(self, timeout: float) -> list[str]:
        """As `Transport.models`."""
        ...

    async def close(self) -> None:
        """As `Transport.close`."""
        ...


def connect_async(url: str, *, protocol: _wire.Protocol | None = None) -> AsyncTransport:
    """An asyncio transport for a URL; nothing is sent before the first question.

    Args:
        url: "http://host:8000", "grpc://host:8001", or "host:port" with `protocol`.
        protocol: "http" or "grpc"; "http" where neither this nor the URL says.

    Raises:
        InputError: the URL cannot be read.
    """
    address = _wire.parse_url(url, protocol)
    return AsyncGrpcTransport(address) if address.protocol == "grpc" else AsyncHttpTransport(address)


class AsyncHttpTransport:
    """HTTP with binary tensors over a pool of kept connections."""

    def __init__(self, address: Address) -> None:
        self.url = address.url
        self._address = address
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def ready(self, model: str, timeout: float) -> bool:
        try:
            await self._ask("GET", "ready", model, timeout)
        except InferenceFailed:
            return False
        return True

    async def config(self, model: str, timeout: float) -> dict[str, Any]:
        return _wire.http_object(self.url, "config", model, (await self._ask("GET", "config", model, timeout))[0])

    async def statistics(self, model: str, timeout: float) -> dict[str, Any]:
        return _wire.http_object(self.url, "stats", model, (await self._ask("GET", "stats", model, timeout))[0])

    async def models(self, timeout: float) -> list[str]:
        return _wire.model_names(self.url, await self.statistics("", timeout))

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        timeout: float,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Tensors:
        body, own = _wire.http_request(inputs, outputs)
        answer, length = await self._ask("POST", "infer", model, timeout, body, {**(headers or {}), **own})
        return _wire.http_answer(self.url, model, answer, length, outputs)

    async def close(self) -> None:
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(
        self,
        method: str,
        kind: str,
        model: str,
        timeout: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[bytes, str | None]:
        """Ask, and give the answer's body and the length of its JSON header, where it has one."""
        import aiohttp

        if self._closed:
            raise _wire.closed(self.url)
        if self._session is None:  # not before: aiohttp wants the running loop
            # unless told otherwise aiohttp asks for gzip, and Triton then compresses every answer
            self._session = aiohttp.ClientSession(headers={"Accept-Encoding": "identity"})
        path = _wire.http_path(self._address, kind, model)
        try:
            try:
                status, answer, length = await self._exchange(self._session, method, path, body, headers, timeout)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # a kept connection whose server was restarted; asking twice does no harm
                status, answer, length = await self._exchange(self._session, method, path, body, headers, timeout)
        except (asyncio.TimeoutError, TimeoutError) as error:  # two classes before Python 3.11
            raise _wire.too_late(self.url, timeout) from error
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            raise _wire.unavailable(self.url, error) from error
        except RuntimeError as error:  # what aiohttp raises on a session that was closed meanwhile
            raise _wire.closed(self.url) from error
        if status != 200:
            raise _wire.http_error(self.url, _wire.asked(kind, model), status, answer, timeout)
        return answer, length

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str] | None,
        timeout: float,
    ) -> tuple[int, bytes, str | None]:
        import aiohttp
        from yarl import URL

        url = URL(f"http://{self._address.target}{path}", encoded=True)
        limit = aiohttp.ClientTimeout(total=timeout)
        async with session.request(method, url, data=body, headers=headers, timeout=limit) as response:
            return response.status, await response.read(), response.headers.get(_wire.HEADER_LENGTH)


class AsyncGrpcTransport:
    """gRPC over kept connections, one for each call at once. A late call is never cancelled (`_late`).

    Args:
        address: the server's.
        most_late: calls that nobody waits for any more; with so many no other is begun.
    """

    def __init__(self, address: Address, most_late: int = MOST) -> None:
        self.url = address.url
        self._target = address.target
        self._calls = Calls(address, most_late)

    @property
    def late(self) -> int:
        """Calls that nobody waits for any more, and the server still works on."""
        return self._calls.late

    async def ready(self, model: str, timeout: float) -> bool:
        try:
            return bool((await self._ask("ready", model, timeout)).ready)
        except InferenceFailed:
            return False

    async def config(self, model: str, timeout: float) -> dict[str, Any]:
        return _wire.to_dict((await self._ask("config", model, timeout)).config)

    async def statistics(self, model: str, timeout: float) -> dict[str, Any]:
        return _wire.to_dict(await self._ask("stats", model, timeout))

    async def models(self, timeout: float) -> list[str]:
        return _wire.model_names(self.url, await self.statistics("", timeout))

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        timeout: float,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Tensors:
        request = _wire.grpc_request(model, inputs, outputs)
        answer = await self._call("ModelInfer", request, _wire.asked("infer", model), timeout, headers)
        return _wire.grpc_answer(self.url, model, answer, outputs)

    async def infer_row(
        self, one: OneRow, request: bytes, timeout: float, *, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """`infer` of one row: what `OneRow.request` made of it -> its outputs."""
        body = await self._exchange("ModelInfer", request, one.asked, timeout, headers)
        return one.answer(self.url, body)

    async def close(self) -> None:
        self._calls.close()

    async def _ask(self, kind: str, model: str, timeout: float) -> Any:
        return await self._call(*_wire.grpc_question(kind, model), _wire.asked(kind, model), timeout)

    async def _call(
        self, method: str, request: Any, what: str, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Any:
        body = await self._exchange(method, request.SerializeToString(), what, timeout, headers)
        with _wire.grpc_faults(self.url, what, timeout):
            return _wire.grpc_message(method, body)

    async def _exchange(
        self, method: str, message: bytes, what: str, timeout: float, headers: Mapping[str, str] | None
    ) -> bytes:
        block = opening_headers(method_path(method), self._target)
        if headers:
            block += header_block(headers.items())
        with _wire.grpc_faults(self.url, what, timeout):
            status, words, body = await self._calls.call(block, message, timeout)
        _wire.check_status(self.url, what, status, words, timeout)
        return body
