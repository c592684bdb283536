"""The gateway's own gRPC, before gRPC's own server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tristage.client._wire import GRPC_OPTIONS, Address
from tristage.errors import AnswerTooLate, InferenceFailed, ServerUnavailable
from tristage.gateway.calls import Calls


class Echo(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers "y" with what "x" was; does as the model's name says."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        self.peers: set[str] = set()
        self.inside = self.most = 0

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self.seen.append({key: str(value) for key, value in context.invocation_metadata()})
        self.peers.add(context.peer())
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if request.model_name == "slow":
                await asyncio.sleep(0.3)
            if request.model_name == "wrong":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "näh, 100% wrong")
            answer = service_pb2.ModelInferResponse(raw_output_contents=[request.raw_input_contents[0]])
            answer.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
            return answer
        finally:
            self.inside -= 1


@contextlib.asynccontextmanager
async def serving(echo: Echo, port: int = 0, grace: float | None = None) -> AsyncIterator[int]:
    server = grpc.aio.server(options=[*GRPC_OPTIONS, ("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(echo, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace)


def x(size: int = 1) -> dict[str, Any]:
    return {"x": np.arange(size, dtype=np.float32).reshape(-1, 1)}


def calls_to(port: int, patience: float = 20.0) -> Calls:
    return Calls(Address("grpc", "127.0.0.1", port), patience)


async def same(calls: Calls, model: str = "m", size: int = 1, seconds: float = 20.0, **headers: str) -> None:
    inputs = x(size)
    answers = await calls.infer(model, inputs, ["y"], seconds, headers)
    np.testing.assert_array_equal(answers["y"], inputs["x"])


def test_one_after_the_other_takes_one_connection_and_many_at_once_take_many() -> None:
    async def main() -> None:
        echo = Echo()
        async with serving(echo) as port:
            calls = calls_to(port)
            for number in range(5):
                await same(calls, **{"x-request-id": f"r{number}", "long": "v" * 300})
            assert [seen["x-request-id"] for seen in echo.seen] == [f"r{number}" for number in range(5)]
            assert {seen["long"] for seen in echo.seen} == {"v" * 300}
            assert len(echo.peers) == 1
            await asyncio.gather(*(same(calls, "slow") for _ in range(40)))
            assert (echo.most, len(echo.peers)) == (40, 40)
            await asyncio.gather(*(same(calls, "slow") for _ in range(40)))
            assert len(echo.peers) == 40
            calls.close()

    asyncio.run(main())


def test_large_messages_go_as_the_server_takes_them() -> None:
    async def main() -> None:
        async with serving(Echo()) as port:
            calls = calls_to(port)
            for size in (1, 4_000_000, 20_000, 1_000_000):  # 16 MB at most, far beyond every window
                await same(calls, size=size)
            calls.close()

    asyncio.run(main())


def test_a_refusal_has_the_server_s_words_and_the_connection_goes_on() -> None:
    async def main() -> None:
        echo = Echo()
        async with serving(echo) as port:
            calls = calls_to(port)
            for _ in range(2):
                with pytest.raises(InferenceFailed, match=r"INVALID_ARGUMENT.*näh, 100% wrong"):
                    await calls.infer("wrong", x(), ["y"], 20.0, {})
                await same(calls)
            with pytest.raises(InferenceFailed, match="cannot be read"):
                await calls.infer("m", x(), ["z"], 20.0, {})
            assert len(echo.peers) == 1
            calls.close()

    asyncio.run(main())


def test_a_server_that_was_started_again_is_found_at_once() -> None:
    async def main() -> None:
        async with serving(Echo()) as port:
            calls = calls_to(port)
            await asyncio.gather(*(same(calls, "slow") for _ in range(3)))
        with pytest.raises(ServerUnavailable, match="no server answers"):
            await same(calls)
        async with serving(Echo(), port):
            await asyncio.gather(*(same(calls) for _ in range(5)))
            calls.close()

    asyncio.run(main())


def test_a_server_that_goes_answers_what_it_has() -> None:
    async def main() -> None:
        async with serving(Echo(), grace=5.0) as port:
            calls = calls_to(port)
            last = asyncio.ensure_future(same(calls, "slow"))
            await asyncio.sleep(0.1)
        await last
        with pytest.raises(ServerUnavailable):
            await same(calls)
        calls.close()

    asyncio.run(main())


def test_a_late_call_is_left_to_end_and_its_connection_goes_on() -> None:
    async def main() -> None:
        echo = Echo()
        async with serving(echo) as port:
            calls = calls_to(port)
            with pytest.raises(AnswerTooLate, match="within 0.1 s"):
                await same(calls, "slow", seconds=0.1)
            assert (calls.late, echo.inside) == (1, 1)
            await same(calls)
            await asyncio.sleep(0.5)
            assert (calls.late, echo.inside, len(echo.seen)) == (0, 0, 2)
            await asyncio.gather(same(calls, "slow"), same(calls, "slow"))
            assert len(echo.peers) == 2
            calls.close()

    asyncio.run(main())


def test_a_server_that_says_nothing_is_given_up() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            calls = calls_to(silent.getsockname()[1], patience=0.3)
            with pytest.raises(AnswerTooLate, match="within 0.2 s"):
                await same(calls, seconds=0.2)
            assert calls.late == 1
            await asyncio.sleep(0.5)
            assert calls.late == 0
            calls.close()

    asyncio.run(main())


def test_closing_ends_what_is_on_its_way() -> None:
    async def main() -> None:
        async with serving(Echo()) as port:
            calls = calls_to(port)
            last = asyncio.ensure_future(same(calls, "slow"))
            await asyncio.sleep(0.1)
            calls.close()
            with pytest.raises(ServerUnavailable, match="closed"):
                await last
            with pytest.raises(ServerUnavailable, match="closed"):
                await same(calls)

    asyncio.run(main())
