"""What goes along with a request of the asyncio connections reaches the server."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from aiohttp import web
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tristage.client import connect_async
from tristage.client._wire import http_request

HEADERS = {"x-request-id": "mine", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
Y = np.ones((1, 1), dtype=np.float32)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_headers_go_along(protocol: str) -> None:
    seen: dict[str, str] = {}

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
        async def ModelInfer(self, request: Any, context: Any) -> Any:
            seen.update({key: str(value) for key, value in context.invocation_metadata()})
            answer = service_pb2.ModelInferResponse(raw_output_contents=[Y.tobytes()])
            answer.outputs.add(name="y", datatype="FP32", shape=[1, 1])
            return answer

    async def over_http(request: web.Request) -> web.Response:
        seen.update({key.lower(): value for key, value in request.headers.items()})
        body, headers = http_request({"y": Y}, [])
        return web.Response(body=body.replace(b'"inputs"', b'"outputs"').replace(b',"outputs":[]', b""), headers={})

    async def main() -> None:
        if protocol == "grpc":
            server = grpc.aio.server()
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            end = lambda: server.stop(None)  # noqa: E731
        else:
            app = web.Application()
            app.router.add_post("/v2/models/m/infer", over_http)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            end = runner.cleanup
        transport = connect_async(f"{protocol}://127.0.0.1:{port}")
        try:
            await transport.infer("m", {"x": Y}, ["y"], 10.0, headers=HEADERS)
        except Exception:
            if protocol == "grpc":
                raise  # over HTTP the answer is not the point
        finally:
            await transport.close()
            await end()

    asyncio.run(main())
    assert {name: seen.get(name) for name in HEADERS} == HEADERS
