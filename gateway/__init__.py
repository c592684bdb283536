"""The front door of a served stack: HTTP and JSON in front of Triton, for callers who speak nothing else.

::

    from tristage.gateway.app import create_app
    from tristage.gateway.settings import Settings

    app = create_app(Settings(url="grpc://127.0.0.1:8001"))  # an ASGI application; `tristage gateway` runs it

It needs only Triton's address: the columns are asked of the server. Everything is asyncio in one process, which holds
hundreds of waiting requests and refuses those beyond (503, Retry-After). Nothing is imported here, so that the command
line works without the extra `gateway`.
"""
