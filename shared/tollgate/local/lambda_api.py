"""Lambda's Invoke API for functions of the local stack that operators call themselves, on loopback.

The command line then invokes them as it does on AWS; nothing is signed or checked here, as with all of the local AWS.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack

from tollgate.adapters import telemetry
from tollgate.adapters.http_server import HttpServer
from tollgate.local.functions import Function
from tollgate.services.exchange import Exchange, Receive, Scope, Send

PREFIX, SUFFIX = "/2015-03-31/functions/", "/invocations"
MAX_EVENT = 6 * 1024 * 1024
"""Bytes: Lambda's own limit."""
STOP_S = 2.0


class LambdaApi:
    """An ASGI application: ``POST /2015-03-31/functions/NAME/invocations``, and nothing else."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self._functions = functions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        name = exchange.path.removeprefix(PREFIX).removesuffix(SUFFIX)
        function = self._functions.get(name) if exchange.path == PREFIX + name + SUFFIX else None
        if function is None or exchange.method != "POST":
            kind = (b"x-amzn-errortype", b"ResourceNotFoundException")
            await _answer(exchange, 404, {"Message": f"Function not found: {name[:100]}"}, kind)
            return
        try:
            event = json.loads(await exchange.body(MAX_EVENT) or b"{}")
            result = await function.invoke(event)
        except Exception as error:  # noqa: BLE001 - whatever a function raises is its failure, not ours
            sys.stdout.write(f"{name} failed: {telemetry.where(error)}\n")
            problem = {"errorType": type(error).__name__, "errorMessage": str(error)}
            await _answer(exchange, 200, problem, (b"x-amz-function-error", b"Unhandled"))
        else:
            await _answer(exchange, 200, result)


async def serve(functions: Mapping[str, Function], exits: AsyncExitStack) -> str:
    """Serve these functions, by their names, until `exits` ends it; the endpoint's URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(LambdaApi(functions))
    await server.start(listener)
    exits.push_async_callback(server.stop, STOP_S)
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def _answer(exchange: Exchange, status: int, value: object, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps(value).encode()
    sizes = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await exchange.start(status, [*sizes, *headers])
    await exchange.send(body)
    await exchange.finish()
