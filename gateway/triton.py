"""The gateway's side of Triton: what it serves, whether it is there, and the questions to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tristage.client._async_transport import AsyncGrpcTransport, AsyncHttpTransport
from tristage.client._client import ask_stack_async, find_signature, join, split
from tristage.client._row import OneRow
from tristage.client._wire import Tensors, parse_url
from tristage.columns import Signature
from tristage.distribution import Distribution
from tristage.errors import (
    AnswerTooLate,
    InferenceFailed,
    RepositoryError,
    ServerError,
    ServerUnavailable,
    TristageError,
)
from tristage.gateway.drift import read_reference
from tristage.gateway.example import example_row
from tristage.gateway.graph import Step, read_steps
from tristage.manifest import Manifest, read_manifest

__all__ = ["Served", "Triton"]

_LOOK = 1.0  # seconds between two looks at a server that is there
_LOOK_AWAY = 0.25  # and at one that is not
_PATIENCE = 2.0  # seconds a look may take
_SLOW = 3  # looks in a row that come too late, before a server that keeps its connection counts as away
_LAST = 20.0  # seconds that calls which nobody waits for any more get when the gateway ends
_HUNG = 120.0  # seconds after which a call is given up for good
_FRESH = 0.9  # seconds that statistics are good for, however many pages ask


@dataclass(frozen=True)
class Served:
    """What the server serves.

    Attributes:
        signature: the stack's columns.
        steps: its Triton models, each behind those it reads.
        manifest: what the export wrote; None where no repository is known, or another stack's is.
        example: a row that can be sent, as JSON has it.
        reference: column -> how the golden rows' values are distributed; empty where that is not known.
        one_row: makes Triton's messages about a single row; None where it is asked over HTTP.
        note: why the repository that was named is not made use of; "" where it is.
    """

    signature: Signature
    steps: tuple[Step, ...]
    manifest: Manifest | None
    example: Mapping[str, Any]
    reference: Mapping[str, Distribution] = field(default_factory=dict)
    note: str = ""
    one_row: OneRow | None = None


class Triton:
    """One connection, for one event loop. `watch` has to run beside; it keeps `served` and `away` true.

    Args:
        url: the server's.
        stack: the stack's name, where the server has several.
        repository: what the server serves, where that is known.
        most_late: calls that nobody waits for any more; with so many no other is begun.
    """

    def __init__(self, url: str, stack: str | None, repository: Path | None, most_late: int) -> None:
        address = parse_url(url)
        self._grpc = AsyncGrpcTransport(address, most_late) if address.protocol == "grpc" else None
        self._transport = self._grpc or AsyncHttpTransport(address)
        self._stack = stack
        self._repository = repository
        self._seen = ""  # the configuration that `served` was made of
        self._slow = 0
        self._late: set[asyncio.Future[Tensors]] = set()
        self._looked, self._wake = asyncio.Event(), asyncio.Event()
        self._statistics: tuple[float, dict[str, Any]] = (float("-inf"), {})
        self._asking = asyncio.Lock()
        self.served: Served | None = None
        self.away: str | None = "Triton has not been asked yet"

    @property
    def late(self) -> int:
        """Calls that nobody waits for any more, and Triton still works on."""
        return len(self._late) + (0 if self._grpc is None else self._grpc.late)

    @property
    def url(self) -> str:
        """Triton's address."""
        return self._transport.url

    async def watch(self) -> None:
        """Look at the server for ever: whether it is there, and what it serves."""
        while True:
            try:
                await self._look()
                self.away, self._slow = None, 0
            except AnswerTooLate as error:
                self._slow += 1
                if self._slow >= _SLOW or self.served is None:
                    self.away = str(error)
            except TristageError as error:
                self.away = str(error)
            self._looked.set()
            if self.away is not None:
                self._seen = ""  # what comes back may be another export
            self._wake.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _LOOK if self.away is None else _LOOK_AWAY)

    async def first_look(self, seconds: float) -> None:
        """Return when the server has been looked at once, or after some seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._looked.wait(), seconds)

    async def infer(
        self, signature: Signature, tensors: Tensors, deadline: float, headers: Mapping[str, str]
    ) -> Tensors:
        """Answer tensors of any number of rows, a part at a time, so that small requests get in between.

        Raises:
            ServerUnavailable: nothing answers, or not before the deadline (of time.monotonic()).
            InferenceFailed: the server refused.
        """
        outputs = [column.name for column in signature.outputs]
        answers = [
            await self.ask(signature.stack, part, outputs, deadline, headers)
            for part in split(tensors, signature.max_batch)
        ]
        return join(answers, outputs)

    async def infer_row(
        self, one: OneRow, request: bytes, deadline: float, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """The outputs of one row, by gRPC; `request` as `one` made it, and errors as `infer`'s."""
        assert self._grpc is not None
        seconds = max(deadline - time.monotonic(), 0.0)
        try:
            return await self._grpc.infer_row(one, request, seconds, headers=_passed_on(headers, seconds))
        except ServerUnavailable as error:
            self._missed(error)
            raise

    async def ask(
        self, model: str, tensors: Tensors, outputs: list[str], deadline: float, headers: Mapping[str, str]
    ) -> Tensors:
        """Ask one model; errors as `infer`'s.

        At the deadline the caller is told so, and the call is left to end by itself: an ensemble's request that is
        cancelled midway is never forgotten by Triton 2.51, which then waits for it when it ends (seen with any client).
        """
        seconds = max(deadline - time.monotonic(), 0.0)
        passed_on = _passed_on(headers, seconds)
        try:
            if self._grpc is not None:
                return await self._grpc.infer(model, tensors, outputs, seconds, headers=passed_on)
            return await self._ask_http(model, tensors, outputs, seconds, passed_on)
        except ServerUnavailable as error:
            self._missed(error)
            raise

    def _missed(self, error: ServerUnavailable) -> None:
        if not isinstance(error, AnswerTooLate):
            self.away = str(error)  # the next requests need not find out for themselves
            self._wake.set()

    async def _ask_http(
        self, model: str, tensors: Tensors, outputs: list[str], seconds: float, headers: Mapping[str, str]
    ) -> Tensors:
        call = asyncio.ensure_future(self._transport.infer(model, tensors, outputs, _HUNG, headers=headers))
        await asyncio.wait({call}, timeout=seconds)
        if not call.done():
            self._late.add(call)
            call.add_done_callback(self._forget)
            raise AnswerTooLate(f"{self.url} did not answer in time", url=self.url)
        return call.result()

    def _forget(self, call: asyncio.Future[Tensors]) -> None:
        self._late.discard(call)
        if not call.cancelled():
            call.exception()  # looked at, so that nobody complains that it was not

    async def statistics(self) -> dict[str, Any]:
        """Every model's statistics; one question a second, however many ask.

        Raises:
            ServerError: as `ask`.
        """
        async with self._asking:
            if time.monotonic() - self._statistics[0] > _FRESH:
                self._statistics = (time.monotonic(), await self._transport.statistics("", _PATIENCE))
            return self._statistics[1]

    async def close(self) -> None:
        """Close the connections, after the calls that nobody waits for any more: to cancel one may end Triton 2.51."""
        deadline = time.monotonic() + _LAST
        while self.late and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await self._transport.close()

    async def _look(self) -> None:
        transport = self._transport
        if self._seen and self.served is not None:
            name = self.served.signature.stack
            config: Mapping[str, Any] = await transport.config(name, _PATIENCE)
            signature = find_signature(self.url, name, {name: config})
        else:
            signature, config = await ask_stack_async(transport, self._stack, _PATIENCE)
        if not await transport.ready(signature.stack, _PATIENCE):
            raise ServerError(f'"{signature.stack}" at {self.url} is not ready')
        seen = json.dumps(config, sort_keys=True)
        if seen != self._seen:
            one_row = None if self._grpc is None else OneRow(signature)
            self.served = await asyncio.to_thread(_describe, signature, config, self._repository, one_row)
            self._seen = seen


def _passed_on(headers: Mapping[str, str], seconds: float) -> dict[str, str]:
    """What Triton is told: the caller's id and trace, and the time that is left."""
    return {**headers, "x-request-timeout-ms": str(int(seconds * 1000))}


def _describe(
    signature: Signature, config: Mapping[str, Any], repository: Path | None, one_row: OneRow | None
) -> Served:
    manifest, note = None, ""
    if repository is not None:
        try:
            manifest = read_manifest(repository)
            if manifest.signature != signature:
                manifest, note = None, f"{repository} holds another export than the one that is served"
        except RepositoryError as error:
            note = str(error)
    names = {} if manifest is None else {model: step for step, model in _one_step_each(manifest).items()}
    try:
        steps = read_steps(config, names)
    except (KeyError, TypeError, ValueError) as error:
        raise InferenceFailed(f'the configuration of "{signature.stack}" cannot be read ({error})') from error
    golden = None if manifest is None else repository
    return Served(signature, steps, manifest, example_row(signature, golden), read_reference(golden), note, one_row)


def _one_step_each(manifest: Manifest) -> dict[str, str]:
    """Steps that have a Triton model to themselves."""
    models = list(manifest.models.values())
    return {step: model for step, model in manifest.models.items() if models.count(model) == 1}
