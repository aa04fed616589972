"""A model provider whose every move a test decides, and which keeps exactly what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.tokens import key_set

WAIT_S = 15.0
"""How long a script waits for its test before it gives up, in seconds."""

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@dataclass(frozen=True)
class Received:
    """One request, as it arrived."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """What a script answers with."""

    def __init__(self, handler: BaseHTTPRequestHandler, received: Received) -> None:
        self._handler = handler
        self.received = received

    def whole(self, status: int = 200, body: bytes = b"{}", **headers: str) -> None:
        """A complete answer; underscores in header names stand for hyphens."""
        handler = self._handler
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    def begin_stream(self, kind: str = "text/event-stream") -> None:
        handler = self._handler
        handler.send_response(200)
        handler.send_header("content-type", kind)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()

    def send(self, piece: bytes) -> None:
        """Part of a stream, in a chunk of its own."""
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self._handler.wfile.flush()

    def end_stream(self) -> None:
        self._handler.wfile.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        """Close the connection, whatever was promised."""
        self._handler.close_connection = True


Script = Callable[[Exchange], None]


def completion(content: str = "Hello", **more: Any) -> bytes:
    """A chat completion with `USAGE`; `more` are further members of it."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "scripted", "choices": [choice]}
    return json.dumps({**answer, "usage": USAGE, **more}).encode()


def delta(content: str, **more: Any) -> bytes:
    """One event of a streamed chat completion."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
    return b"data: " + json.dumps({**chunk, "choices": [choice], **more}).encode() + b"\n\n"


USAGE_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"scripted","choices":[],"usage":'
    + json.dumps(USAGE).encode()
    + b"}\n\n"
)
DONE_EVENT = b"data: [DONE]\n\n"


def answer_plainly(exchange: Exchange) -> None:
    """What is done while no test has a script."""
    exchange.whole(200, completion())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


@dataclass
class ScriptedUpstream:
    """The server. `play` a script, and every request is answered by it meanwhile."""

    port: int = 0
    requests: list[Received] = field(default_factory=list)
    """Of the script that plays."""
    _script: Script = answer_plainly

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @contextmanager
    def play(self, script: Script = answer_plainly) -> Iterator[list[Received]]:
        """Answer by `script`; gives the requests as they come."""
        self.requests = []
        self._script = script
        try:
            yield self.requests
        finally:
            self._script = answer_plainly

    @contextmanager
    def serve(self) -> Iterator[ScriptedUpstream]:
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    pass  # the gateway was killed

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                received = Received(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                upstream.requests.append(received)
                try:
                    upstream._script(Exchange(self, received))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the gateway had enough

            def do_GET(self) -> None:
                """The signing keys of the tests' own issuer, whatever is asked for."""
                Exchange(self, Received(self.path, {}, b"")).whole(200, key_set())

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody reads it."""

        server = _Server(("127.0.0.1", self.port), Handler)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Gate:
    """Holds a script up until its test says so."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self) -> None:
        self._event.set()

    def wait(self) -> None:
        assert self._event.wait(WAIT_S), "the test did not open the gate in time"
