"""The ASGI application around a gateway: lifespan, and nothing else. No per-request state lives here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tollgate.services.exchange import Exchange, Receive, Scope, Send
from tollgate.services.gateway import Gateway


class Application:
    """Makes its gateway when the server starts (or at the first request, where there is no lifespan), inside the
    server's event loop, and closes it when the server stops."""

    def __init__(self, make: Callable[[], Awaitable[Gateway]]) -> None:
        self._make = make
        self._gateway: Gateway | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A coroutine function, by which uvicorn knows ASGI's version."""
        if scope["type"] == "http":
            if self._gateway is None:
                self._gateway = await self._make()
            await self._gateway.serve(Exchange(scope, receive, send))
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise RuntimeError(f"only HTTP is served here, not {scope['type']}")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    self._gateway = await self._make()
                except Exception as error:  # noqa: BLE001 - the server prints the message and stops
                    await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                if self._gateway is not None:
                    await self._gateway.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return
