"""The proxy as Lambda runs it: `run.sh`, the real Lambda Web Adapter before it, and the two APIs that the adapter uses.

The Runtime API hands out events and takes answers, here as streams: a JSON prelude with the status and the headers,
eight zero bytes, and then the body, chunk by chunk, as API Gateway gets it. The Extensions API only has to be there.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.functional.cloudformation import resources
from tollgate.local.children import free_port

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = ROOT / ".tools" / "bin" / "lambda-adapter"
INVOCATIONS = "/2018-06-01/runtime/invocation/"
EXTENSIONS = "/2020-01-01/extension/"
PRELUDE_END = bytes(8)
CONTENT_TYPE = "application/vnd.awslambda.http-integration-response"
"""Tells API Gateway that the stream begins with a prelude."""


@dataclass(slots=True)
class Invocation:
    """One event and its answer, as it arrives."""

    id: str
    event: bytes
    deadline_ms: int
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the adapter's POST: the mode and the content type of the answer."""
    status: int = 0
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    _arrived: queue.Queue[tuple[float, bytes] | None] = field(default_factory=queue.Queue)

    def chunks(self, within_s: float = 30) -> Iterator[tuple[float, bytes]]:
        """(monotonic time, bytes) of the body; status and headers are known once the first is there, or the end."""
        held = b""
        while (item := self._arrived.get(timeout=within_s)) is not None:
            when, data = item
            if not self.status:
                prelude, end, data = (held + data).partition(PRELUDE_END)
                if not end:
                    held = prelude
                    continue
                parsed = json.loads(prelude)
                self.status, self.answer_headers = parsed["statusCode"], parsed["headers"]
            if data:
                yield when, data

    def body(self, within_s: float = 30) -> bytes:
        return b"".join(data for _, data in self.chunks(within_s))


class AdaptedFunction:
    """One execution environment. `env` comes on top of what the template and Lambda set."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self.waiting: queue.Queue[Invocation | None] = queue.Queue()
        self.running: dict[str, Invocation] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        template = resources("AWS::Lambda::Function")["ProxyFunction"]["Environment"]["Variables"]
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}",
            "AWS_LAMBDA_FUNCTION_NAME": "proxy",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
            "AWS_REGION": "eu-central-1",
            "LAMBDA_TASK_ROOT": str(ROOT),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'shared'}",
            **{name: value for name, value in template.items() if name.startswith("AWS_LWA_")},
            "AWS_LWA_PORT": str(free_port()),
            **env,
        }
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> AdaptedFunction:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        # Lambda starts extensions first; the adapter waits for the application by itself
        self._start([ADAPTER])
        application = self._start([ROOT / "functions" / "proxy" / "run.sh"])
        threading.Thread(target=self._read, args=(application,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.waiting.put(None)
        self._server.shutdown()
        self._server.server_close()

    def invoke(self, event: Mapping[str, Any], timeout_s: float = 60) -> Invocation:
        """Hand an event to the adapter; `timeout_s` is how long Lambda would let it run."""
        deadline_ms = int((time.time() + timeout_s) * 1000)
        invocation = Invocation(str(uuid.uuid4()), json.dumps(event).encode(), deadline_ms)
        self.running[invocation.id] = invocation
        self.waiting.put(invocation)
        return invocation

    def records(self) -> list[dict[str, Any]]:
        """The usage records that the proxy has written so far."""
        parsed = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [record for record in parsed if str(record.get("event", "")).startswith("usage.")]

    def _start(self, command: list[Path]) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, env=self.env, cwd="/", stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line.rstrip("\n"))


def api_event(
    method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None, context: Mapping[str, str]
) -> dict[str, Any]:
    """What a REST API's Lambda proxy integration sends; `context` is the authorizer's."""
    sent = {"host": "abc.execute-api.eu-central-1.amazonaws.com", "content-type": "application/json", **(headers or {})}
    return {
        "resource": path,
        "path": path,
        "httpMethod": method,
        "headers": sent,
        "multiValueHeaders": {name: [value] for name, value in sent.items()},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abc",
            "authorizer": {**context, "principalId": "p", "integrationLatency": "3"},
            "httpMethod": method,
            "identity": {"sourceIp": "192.0.2.7", "userAgent": "test"},
            "path": f"/live{path}",
            "protocol": "HTTP/1.1",
            "requestId": str(uuid.uuid4()),
            "requestTimeEpoch": int(time.time() * 1000),
            "resourceId": "r",
            "resourcePath": path,
            "stage": "live",
        },
        "body": body.decode() or None,
        "isBase64Encoded": False,
    }


def _handler_for(function: AdaptedFunction) -> type[BaseHTTPRequestHandler]:
    class LambdaApis(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == EXTENSIONS + "event/next":
                threading.Event().wait()  # no event ever comes; the thread ends with the process
            assert self.path == INVOCATIONS + "next", self.path
            invocation = function.waiting.get()
            if invocation is None:
                self.close_connection = True
                return
            self._answer(
                200,
                invocation.event,
                {
                    "Content-Type": "application/json",
                    "Lambda-Runtime-Aws-Request-Id": invocation.id,
                    "Lambda-Runtime-Deadline-Ms": str(invocation.deadline_ms),
                    "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-central-1:123456789012:function:proxy",
                    "Lambda-Runtime-Trace-Id": "Root=1-5e1b4151-5ac6c58f3f6b8d5d6c5f3f6b;Sampled=0",
                },
            )

        def do_POST(self) -> None:
            if self.path == EXTENSIONS + "register":
                self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(200, b"{}", {"Lambda-Extension-Identifier": "adapter"})
                return
            invocation_id, _, outcome = self.path.removeprefix(INVOCATIONS).partition("/")
            invocation = function.running.pop(invocation_id)
            invocation.headers = {name.lower(): value for name, value in self.headers.items()}
            for data in self._body():
                invocation._arrived.put((time.monotonic(), data))
            invocation._arrived.put(None)
            self._answer(202, b"", {})
            assert outcome == "response", outcome

        def _body(self) -> Iterator[bytes]:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                yield self.rfile.read(int(self.headers.get("Content-Length", "0")))
                return
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline() not in (b"\r\n", b""):
                pass  # trailers: where a stream that broke off says so

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return LambdaApis


def adapter_is_built() -> bool:
    return os.access(ADAPTER, os.X_OK)
