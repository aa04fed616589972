"""The gateway's own answers: JSON, and errors in the shapes that the caller's SDK knows."""

from __future__ import annotations

import orjson

from tollgate.services.exchange import Exchange
from tollgate.wire.errors import Api, ApiError
from tollgate.wire.routes import Route


def api_of(exchange: Exchange, route: Route | None) -> Api:
    """Whose shapes the caller speaks: the route's, else the SDK's; Anthropic's always tells."""
    if route is not None:
        return route.api
    return "anthropic" if b"anthropic-version" in exchange.headers else "openai"


async def respond(exchange: Exchange, status: int, payload: object, request_id: str) -> None:
    await _respond(exchange, status, orjson.dumps(payload), {"x-request-id": request_id})


async def answer_error(exchange: Exchange, error: ApiError, route: Route | None, request_id: str) -> None:
    """Tell the caller, unless an answer has begun already: then the stream just ends."""
    if exchange.started:
        if exchange.streams:
            await exchange.send(error.event(api_of(exchange, route), request_id))
        await exchange.finish()
        return
    api = api_of(exchange, route)
    await _respond(exchange, error.status, error.body(api, request_id), error.headers_for(api, request_id))


async def _respond(exchange: Exchange, status: int, body: bytes, headers: dict[str, str]) -> None:
    lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    lines += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await exchange.start(status, lines)
    await exchange.send(body)
    await exchange.finish()
