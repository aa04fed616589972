"""The yardstick: a proxy without any feature, on the gateway's HTTP client and on uvicorn, which everybody knows.

What the gateway costs above this is what identity, limits, metering and headers cost, less what its own server saves.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tollgate.adapters.http import HttpClient

UPSTREAM = os.environ.get("BENCH_UPSTREAM", "http://127.0.0.1:1")
_client: HttpClient | None = None

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for answer in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            await receive()
            await send({"type": answer})
        return
    global _client
    if _client is None:
        _client = HttpClient()
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-type", b"application/json")]
    response = await _client.request("POST", UPSTREAM + scope["path"], headers, body)
    kept = [header for header in response.headers if header[0] in (b"content-type", b"content-length")]
    await send({"type": "http.response.start", "status": response.status, "headers": kept})
    async for chunk in response:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
