"""The clients: rows in, the same shape of thing out, over whichever protocol the URL says.

Blocking and asyncio share everything but the awaiting: what is sent, how it is split, how answers are joined.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tristage.client import _wire
from tristage.client._async_transport import AsyncTransport, connect_async
from tristage.client._transport import Transport, connect
from tristage.client._wire import Tensors
from tristage.client.codec import Unknown, decode, encode
from tristage.columns import SIGNATURE_PARAMETER, Signature
from tristage.errors import InferenceFailed, ServerError

__all__ = ["AsyncClient", "Client"]


class Client:
    """A blocking client of one served stack. One connection; give each thread a client of its own to ask in parallel.

    ::

        with Client("http://127.0.0.1:8000") as client:
            client.predict([{"age": 31, "language": "en"}])
    """

    def __init__(
        self,
        url: str,
        *,
        stack: str | None = None,
        protocol: _wire.Protocol | None = None,
        timeout: float = 30.0,
    ) -> None:
        """Nothing is sent before the first question.

        Args:
            url: "http://host:8000", "grpc://host:8001", or "host:port" with `protocol`.
            stack: the stack's name; found where the server has one only.
            protocol: "http" or "grpc", where the URL does not say.
            timeout: seconds that one request may take.

        Raises:
            InputError: the URL cannot be read.
        """
        self._transport = connect(url, protocol=protocol)
        self._stack = stack
        self._signature: Signature | None = None
        self.timeout = timeout

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The server's URL, whole."""
        return self._transport.url

    @property
    def signature(self) -> Signature:
        """The stack's columns, asked of the server once.

        Raises:
            ServerUnavailable: nothing answers.
            ServerError: the server has no such stack, or several and none was named.
        """
        if self._signature is None:
            self._signature = ask_stack(self._transport, self._stack, self.timeout)[0]
        return self._signature

    def predict(self, rows: Any, *, unknown: Unknown = "error", first_row: int = 0) -> Any:
        """Predict rows; more than the server takes at once go in several requests.

        Args:
            rows: a list of dicts, a pandas DataFrame, a pyarrow Table or RecordBatch, or another Arrow frame.
            unknown: "error", or "ignore" to leave out columns the stack does not have.
            first_row: the number of the first row in messages, for callers who send a long file in parts.

        Returns:
            the stack's outputs for each row, in order, in the shape of `rows`: a list of dicts of Python numbers, a
            DataFrame with the index of `rows`, a Table.

        Raises:
            InputError: the rows do not fit the stack's columns; nothing was sent.
            InferenceFailed: the server refused a request.
            ServerUnavailable: nothing answers, or not in time.

        Warns:
            ListTruncated: lists were longer than declared.
        """
        signature = self.signature
        outputs = [column.name for column in signature.outputs]
        parts = split(encode(rows, signature, unknown=unknown, first_row=first_row), signature.max_batch)
        answers = [self._transport.infer(signature.stack, part, outputs, self.timeout) for part in parts]
        return decode(join(answers, outputs), signature, rows)

    def close(self) -> None:
        """Close the connection, at once; gRPC calls that are late are read to their end, and not cancelled."""
        self._transport.close()


class AsyncClient:
    """`Client` for asyncio; any number of tasks of one event loop may share it.

    ::

        async with AsyncClient("grpc://127.0.0.1:8001") as client:
            await client.predict([{"age": 31, "language": "en"}])
    """

    def __init__(
        self,
        url: str,
        *,
        stack: str | None = None,
        protocol: _wire.Protocol | None = None,
        timeout: float = 30.0,
        concurrency: int = 4,
    ) -> None:
        """As `Client`.

        Args:
            url: "http://host:8000", "grpc://host:8001", or "host:port" with `protocol`.
            stack: the stack's name; found where the server has one only.
            protocol: "http" or "grpc", where the URL does not say.
            timeout: seconds that one request may take.
            concurrency: requests of this client that may be on their way at once.

        Raises:
            InputError: the URL cannot be read.
        """
        self._transport = connect_async(url, protocol=protocol)
        self._stack = stack
        self._signature: Signature | None = None
        self._turns = asyncio.Semaphore(concurrency)
        self.timeout = timeout

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The server's URL, whole."""
        return self._transport.url

    async def signature(self) -> Signature:
        """As `Client.signature`; a coroutine, since it may ask the server."""
        if self._signature is None:
            self._signature = (await ask_stack_async(self._transport, self._stack, self.timeout))[0]
        return self._signature

    async def predict(self, rows: Any, *, unknown: Unknown = "error", first_row: int = 0) -> Any:
        """As `Client.predict`; where several requests are needed they go at once, `concurrency` at a time."""
        signature = await self.signature()
        outputs = [column.name for column in signature.outputs]
        parts = split(encode(rows, signature, unknown=unknown, first_row=first_row), signature.max_batch)
        tasks = [asyncio.ensure_future(self._infer(signature.stack, part, outputs)) for part in parts]
        try:
            answers = await asyncio.gather(*tasks)
        finally:  # one failed or the caller gave up: nobody waits for the others any more
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return decode(join(answers, outputs), signature, rows)

    async def close(self) -> None:
        """Close the connections, as `Client.close`."""
        await self._transport.close()

    async def _infer(self, stack: str, part: Tensors, outputs: Sequence[str]) -> Tensors:
        async with self._turns:
            return await self._transport.infer(stack, part, outputs, self.timeout)


def ask_stack(transport: Transport, stack: str | None, timeout: float) -> tuple[Signature, Mapping[str, Any]]:
    """The signature and Triton's configuration of the stack that a server has.

    Args:
        transport: the connection.
        stack: the name asked for; None for the only stack there is.
        timeout: seconds for each question.

    Raises:
        ServerError: it has no such stack, or several and none was named.
    """
    configs = {}
    for name in candidates(transport.url, stack, transport.models(timeout)):
        with _gone(stack):
            configs[name] = transport.config(name, timeout)
    signature = find_signature(transport.url, stack, configs)
    return signature, configs[signature.stack]


async def ask_stack_async(
    transport: AsyncTransport, stack: str | None, timeout: float
) -> tuple[Signature, Mapping[str, Any]]:
    """`ask_stack` for asyncio."""
    configs = {}
    for name in candidates(transport.url, stack, await transport.models(timeout)):
        with _gone(stack):
            configs[name] = await transport.config(name, timeout)
    signature = find_signature(transport.url, stack, configs)
    return signature, configs[signature.stack]


@contextlib.contextmanager
def _gone(stack: str | None) -> Iterator[None]:
    """A model that was there a moment ago may be a step that was unloaded since; the stack that was named may not."""
    try:
        yield
    except InferenceFailed:
        if stack is not None:
            raise


def candidates(url: str, stack: str | None, models: Sequence[str]) -> Sequence[str]:
    """The models whose configuration is worth reading: the one named, or all.

    Args:
        url: the server's, for messages.
        stack: the name asked for; None for the only stack there is.
        models: names of the server's models.

    Raises:
        ServerError: the server has no model of that name.
    """
    if stack is None:
        return models
    if stack not in models:
        raise ServerError(f'{url} serves no "{stack}"; it serves {_listed(models)}')
    return [stack]


def find_signature(url: str, stack: str | None, configs: Mapping[str, Mapping[str, Any]]) -> Signature:
    """The signature of the one stack among a server's models.

    Args:
        url: the server's, for messages.
        stack: the name asked for; None for the only stack there is.
        configs: model name -> its configuration.

    Raises:
        ServerError: none or several models are stacks.
        RepositoryError: the signature cannot be read.
    """
    found = {
        name: config["parameters"][SIGNATURE_PARAMETER]["string_value"]
        for name, config in configs.items()
        if SIGNATURE_PARAMETER in config.get("parameters", {})
    }
    if not found and stack is not None:
        raise ServerError(f'"{stack}" at {url} was not exported by tristage; name a stack that was')
    if not found:
        raise ServerError(
            f"{url} serves no stack that tristage exported, but {_listed(configs)}; serve one that it did"
        )
    if len(found) > 1:
        raise ServerError(f"{url} serves several stacks, {_listed(found)}; say which one is meant (stack=..., --stack)")
    return Signature.from_json(next(iter(found.values())))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in sorted(names)) or "nothing"


def split(tensors: Tensors, most: int) -> Iterator[Tensors]:
    """Tensors of at most `most` rows each, in order; views."""
    count = len(next(iter(tensors.values())))
    if 0 < count <= most:
        yield tensors
        return
    for start in range(0, count, most):
        yield {name: array[start : start + most] for name, array in tensors.items()}


def join(answers: Sequence[Tensors], outputs: Sequence[str]) -> Tensors:
    """The answers to the parts, end to end.

    Raises:
        InferenceFailed: they do not fit together.
    """
    if len(answers) == 1:
        return answers[0]
    try:
        return {name: np.concatenate([answer[name] for answer in answers]) for name in outputs}
    except ValueError as error:
        raise InferenceFailed(f"the server's answers do not fit together ({error}); export the stack again") from error
