"""The client's own gRPC, blocking and asyncio, before gRPC's own server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tristage.client import _late
from tristage.client._async_line import Calls
from tristage.client._async_transport import AsyncGrpcTransport
from tristage.client._late import MOST
from tristage.client._transport import GrpcTransport
from tristage.client._wire import Address
from tristage.errors import AnswerTooLate, InferenceFailed, ServerUnavailable

LARGE = [("grpc.max_send_message_length", 2**31 - 1), ("grpc.max_receive_message_length", 2**31 - 1)]


class Echo(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers "y" with what "x" was; does as the model's name says."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        self.peers: set[str] = set()
        self.inside = self.most = self.cancelled = 0

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
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1


@contextlib.asynccontextmanager
async def serving(echo: Echo, port: int = 0, grace: float | None = None) -> AsyncIterator[int]:
    server = grpc.aio.server(options=[*LARGE, ("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(echo, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace)


def x(size: int = 1) -> dict[str, Any]:
    return {"x": np.arange(size, dtype=np.float32).reshape(-1, 1)}


def calls_to(port: int, most_late: int = MOST) -> AsyncGrpcTransport:
    return AsyncGrpcTransport(Address("grpc", "127.0.0.1", port), most_late)


async def same(
    calls: AsyncGrpcTransport, model: str = "m", size: int = 1, seconds: float = 20.0, **headers: str
) -> None:
    inputs = x(size)
    answers = await calls.infer(model, inputs, ["y"], seconds, headers=headers)
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
            await calls.close()

    asyncio.run(main())


def test_large_messages_go_as_the_server_takes_them() -> None:
    async def main() -> None:
        async with serving(Echo()) as port:
            calls = calls_to(port)
            for size in (1, 4_000_000, 20_000, 1_000_000):  # 16 MB at most, far beyond every window
                await same(calls, size=size)
            await calls.close()

    asyncio.run(main())


def test_a_refusal_has_the_server_s_words_and_the_connection_goes_on() -> None:
    async def main() -> None:
        echo = Echo()
        async with serving(echo) as port:
            calls = calls_to(port)
            for _ in range(2):
                with pytest.raises(InferenceFailed, match=r"INVALID_ARGUMENT.*näh, 100% wrong"):
                    await calls.infer("wrong", x(), ["y"], 20.0)
                await same(calls)
            with pytest.raises(InferenceFailed, match="cannot be read"):
                await calls.infer("m", x(), ["z"], 20.0)
            assert len(echo.peers) == 1
            await calls.close()

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
            await calls.close()

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
        await calls.close()

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
            assert echo.cancelled == 0
            await calls.close()

    asyncio.run(main())


def test_a_server_that_says_nothing_is_given_up() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            calls = Calls(Address("grpc", "127.0.0.1", silent.getsockname()[1]), MOST, patience=0.3)
            with pytest.raises(asyncio.TimeoutError):
                await calls.call(b"", b"", 0.2)
            assert calls.late == 1
            await asyncio.sleep(0.5)
            assert calls.late == 0
            calls.close()

    asyncio.run(main())


def test_closing_tells_who_waits_and_leaves_the_calls_to_end() -> None:
    async def main() -> None:
        echo = Echo()
        async with serving(echo) as port:
            calls = calls_to(port)
            waiting = [asyncio.ensure_future(same(calls, "slow")) for _ in range(3)]
            late = asyncio.ensure_future(same(calls, "slow", seconds=0.1))
            await asyncio.wait({late})
            assert isinstance(late.exception(), AnswerTooLate)
            assert echo.inside == 4
            await calls.close()
            for each in waiting:
                with pytest.raises(ServerUnavailable, match="closed"):
                    await each
            with pytest.raises(ServerUnavailable, match="closed"):
                await same(calls)
            while echo.inside:
                await asyncio.sleep(0.02)
            assert (len(echo.seen), echo.cancelled) == (4, 0)

    asyncio.run(main())


def test_who_gives_up_cancels_nothing() -> None:
    async def main() -> None:
        echo = Echo()
        async with serving(echo) as port:
            calls = calls_to(port)
            given_up = [asyncio.ensure_future(same(calls, "slow")) for _ in range(3)]
            await asyncio.sleep(0.1)
            for each in given_up:
                each.cancel()
            await asyncio.wait(given_up)
            assert calls.late == 3
            await same(calls, "slow")
            assert (calls.late, echo.inside, echo.cancelled) == (0, 0, 0)
            await calls.close()

    asyncio.run(main())


def test_with_as_many_late_calls_none_is_begun() -> None:
    async def main() -> None:
        echo = Echo()
        async with serving(echo) as port:
            calls = calls_to(port, most_late=2)
            late = await asyncio.gather(*(same(calls, "slow", seconds=0.1) for _ in range(2)), return_exceptions=True)
            assert all(isinstance(each, AnswerTooLate) for each in late)
            with pytest.raises(AnswerTooLate, match="within 0.05 s"):
                await same(calls, seconds=0.05)
            assert (calls.late, len(echo.seen)) == (2, 2)
            await same(calls)  # as soon as there is room
            assert len(echo.seen) == 3
            await calls.close()

    asyncio.run(main())


def ask(transport: GrpcTransport, model: str = "m", seconds: float = 20.0, size: int = 1) -> None:
    np.testing.assert_array_equal(transport.infer(model, x(size), ["y"], seconds)["y"], x(size)["x"])


def test_threads_take_a_connection_each_and_keep_it() -> None:
    async def main() -> None:
        echo = Echo()
        async with serving(echo) as port:
            transport = GrpcTransport(Address("grpc", "127.0.0.1", port))
            for _ in range(3):
                await asyncio.to_thread(ask, transport)
            assert len(echo.peers) == 1
            for _ in range(2):
                await asyncio.gather(*(asyncio.to_thread(ask, transport, "slow") for _ in range(5)))
            assert len(echo.peers) == 5
            await asyncio.to_thread(ask, transport, "m", 20.0, 4_000_000)
            with pytest.raises(InferenceFailed, match=r"INVALID_ARGUMENT.*näh, 100% wrong"):
                await asyncio.to_thread(ask, transport, "wrong")
            waiting = asyncio.ensure_future(asyncio.to_thread(ask, transport, "slow"))
            await asyncio.sleep(0.1)
            transport.close()
            await waiting
            with pytest.raises(ServerUnavailable, match="closed"):
                ask(transport)

    asyncio.run(main())


def test_late_calls_of_threads_are_read_to_their_end() -> None:
    async def main() -> None:
        echo = Echo()
        async with serving(echo) as port:
            transport = GrpcTransport(Address("grpc", "127.0.0.1", port))
            asking = [asyncio.to_thread(ask, transport, "slow", 0.1) for _ in range(5)]
            for each in await asyncio.gather(*asking, return_exceptions=True):
                assert isinstance(each, AnswerTooLate), each
            assert (transport.late, echo.inside) == (5, 5)
            transport.close()
            while transport.late:
                await asyncio.sleep(0.02)
            assert (echo.inside, len(echo.seen), echo.cancelled) == (0, 5, 0)

    asyncio.run(main())


def test_with_as_many_late_calls_threads_begin_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_late, "MOST", 2)

    async def main() -> None:
        echo = Echo()
        async with serving(echo) as port:
            transport = GrpcTransport(Address("grpc", "127.0.0.1", port))
            asking = [asyncio.to_thread(ask, transport, "slow", 0.1) for _ in range(2)]
            assert all(
                isinstance(each, AnswerTooLate) for each in await asyncio.gather(*asking, return_exceptions=True)
            )
            with pytest.raises(AnswerTooLate, match="within 0.05 s"):
                await asyncio.to_thread(ask, transport, "m", 0.05)
            assert (transport.late, len(echo.seen)) == (2, 2)
            await asyncio.to_thread(ask, transport)  # as soon as there is room
            assert len(echo.seen) == 3
            transport.close()

    asyncio.run(main())


def test_a_process_that_ends_waits_for_its_late_calls() -> None:
    program = (
        "import sys, numpy as np\n"
        "from tristage.client import connect\n"
        "from tristage.errors import AnswerTooLate\n"
        "transport = connect(f'grpc://127.0.0.1:{sys.argv[1]}')\n"
        "try:\n"
        "    transport.infer('slow', {'x': np.zeros((1, 1), np.float32)}, ['y'], 0.1)\n"
        "except AnswerTooLate:\n"
        "    transport.close()\n"
        "    print('late')\n"
    )

    async def main() -> None:
        echo = Echo()
        async with serving(echo) as port:
            command = [sys.executable, "-c", program, str(port)]
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            assert (await process.communicate())[0] == b"late\n"
            assert (echo.inside, len(echo.seen), echo.cancelled) == (0, 1, 0)

    asyncio.run(main())
