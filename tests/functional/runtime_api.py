"""The Lambda Runtime API, as much of it as the real runtime interface client (`awslambdaric`) needs.

    with LambdaFunction("functions.authorizer.handler.handler", {"TOLLGATE_ISSUER": ...}) as function:
        answer = function.invoke(event)

runs the handler in a process of its own, exactly as Lambda does: nothing of the test's process is shared with it.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "/2018-06-01/runtime/"
FUNCTION_ARN = "arn:aws:lambda:us-east-1:123456789012:function:test"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an invocation returned, or raised: then `failed`, and the payload has `errorMessage` and `errorType`."""

    payload: Any
    failed: bool


class InitFailed(Exception):
    """The function died before its first invocation."""


class LambdaFunction:
    """One execution environment. `env` is all that the handler sees besides what Lambda itself sets."""

    def __init__(self, handler: str, env: Mapping[str, str], *, root: Path = ROOT, timeout_s: float = 60) -> None:
        self.lines: list[str] = []
        self._timeout_s = timeout_s
        self._events: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._answers: dict[str, queue.Queue[Answer]] = {}
        self._init_error: Any = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self._command = [sys.executable, "-m", "awslambdaric", handler]
        self._root = root
        self._env = {
            "PATH": os.environ["PATH"],
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}",
            "AWS_LAMBDA_FUNCTION_NAME": "test",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "LAMBDA_TASK_ROOT": str(root),
            "PYTHONPATH": str(root / "shared"),  # this checkout's package, whichever one the environment was made from
            "_HANDLER": handler,
            **env,
        }

    def __enter__(self) -> LambdaFunction:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._process = subprocess.Popen(
            self._command,
            cwd=self._root,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._events.put(None)  # whoever still waits for an event
        self._server.shutdown()
        self._server.server_close()

    def invoke(self, event: Any) -> Answer:
        """Send one event (any JSON, or raw bytes) and wait for its answer."""
        request_id = str(uuid.uuid4())
        answers = self._answers[request_id] = queue.Queue()
        self._events.put((request_id, event if isinstance(event, bytes) else json.dumps(event).encode()))
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            try:
                return answers.get(timeout=0.1)
            except queue.Empty:
                if self._process.poll() is not None:
                    raise InitFailed(self._init_error or self.lines) from None
        raise TimeoutError(self.lines)

    def records(self, message: str, count: int = 1) -> list[dict[str, Any]]:
        """The JSON log lines with this message, once there are `count` of them (lines may lag behind answers)."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            parsed = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
            found = [record for record in parsed if record.get("message") == message]
            if len(found) >= count:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(self.lines)
            time.sleep(0.01)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    # the server's side

    def _next(self) -> tuple[str, bytes] | None:
        return self._events.get()

    def _take(self, path: str, body: bytes) -> None:
        payload = json.loads(body) if body else None
        match path.removeprefix(PREFIX).split("/"):
            case ["invocation", request_id, "response" | "error" as outcome]:
                self._answers.pop(request_id).put(Answer(payload, outcome == "error"))
            case ["init", "error"]:
                self._init_error = payload


def _handler_for(function: LambdaFunction) -> type[BaseHTTPRequestHandler]:
    class RuntimeApi(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path == PREFIX + "invocation/next"
            if (pending := function._next()) is None:
                self.close_connection = True
                return
            request_id, event = pending
            self._answer(
                200,
                event,
                {
                    "Content-Type": "application/json",
                    "Lambda-Runtime-Aws-Request-Id": request_id,
                    "Lambda-Runtime-Deadline-Ms": str(int((time.time() + function._timeout_s) * 1000)),
                    "Lambda-Runtime-Invoked-Function-Arn": FUNCTION_ARN,
                    "Lambda-Runtime-Trace-Id": "Root=1-5e1b4151-5ac6c58f3f6b8d5d6c5f3f6b;Sampled=0",
                },
            )

        def do_POST(self) -> None:
            function._take(self.path, self._body())
            self._answer(202, b"", {})

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return RuntimeApi
