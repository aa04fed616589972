"""The client for code that may block, against a server that does what frozen and failing connections look like."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tollgate.adapters import aws_blocking
from tollgate.adapters.aws_blocking import BlockingAws, CallFailed

ENVIRON = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_SESSION_TOKEN": "session"}


def answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


class Server:
    """Answers the requests of each connection with the next script, then closes it without a word."""

    def __init__(self, *scripts: list[bytes]) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._scripts = scripts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.environ = {**ENVIRON, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._listener.getsockname()[1]}"}
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for script in self._scripts:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                for reply in script:
                    self.requests.append(self._request(connection))
                    connection.sendall(reply)

    @staticmethod
    def _request(connection: socket.socket) -> bytes:
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        self._listener.close()
        self._thread.join(5)


Start = Callable[..., tuple[Server, BlockingAws]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes a server with these scripts, and a client of it."""
    running: list[tuple[Server, BlockingAws]] = []

    def make(*scripts: list[bytes], service: str = "dynamodb") -> tuple[Server, BlockingAws]:
        server = Server(*scripts)
        running.append((server, BlockingAws(service, server.environ)))
        return running[-1]

    yield make
    for server, client in running:
        client.close()
        server.close()


def test_a_connection_serves_many_calls(start: Start) -> None:
    server, client = start([answer(200, b'{"Item": {}}'), answer(200, b"{}")])
    assert client.call("GetItem", {"TableName": "t"}) == {"Item": {}}
    assert client.call("GetItem", {"TableName": "t"}) == {}
    assert server.connections == 1
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert b"x-amz-target: DynamoDB_20120810.GetItem" in head
    assert b"x-amz-security-token: session" in head
    assert b"hidden" not in head
    assert json.loads(body) == {"TableName": "t"}


def test_one_that_was_closed_meanwhile_is_made_anew(start: Start) -> None:
    server, client = start([answer(200, b'{"n": 1}')], [answer(200, b'{"n": 2}')])
    assert [client.call("GetItem", {})["n"] for _ in range(2)] == [1, 2]
    assert server.connections == 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer(400, b'{"__type": "com.amazon#AccessDeniedException", "message": "secret"}'), "AccessDeniedException"),
        (answer(500, b"{}"), "500"),
        (answer(200, b"<html>"), "JSONDecodeError"),
        (answer(200, b"[]"), "ValueError"),
        (answer(200, b'"' + b"x" * aws_blocking.MAX_ANSWER + b'"'), "ValueError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "IncompleteRead"),
        (b"garbage\r\n\r\n", "BadStatusLine"),
    ],
    ids=["refused", "failed", "no JSON", "no object", "endless", "cut off", "no HTTP"],
)
def test_a_failure_says_what_and_nothing_that_was_sent_or_came(start: Start, reply: bytes, reason: str) -> None:
    _, client = start([reply], [answer(200, b"{}")], service="secretsmanager")
    with pytest.raises(CallFailed) as failure:
        client.call("GetSecretValue", {"SecretId": "s"})
    assert str(failure.value) == f"secretsmanager: GetSecretValue: {reason}"
    assert client.call("GetSecretValue", {"SecretId": "s"}) == {}  # the next call has a connection of its own


def test_a_server_that_says_nothing_is_not_waited_for_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_blocking, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environ = {**ENVIRON, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with pytest.raises(CallFailed, match="TimeoutError"):
            BlockingAws("dynamodb", environ).call("GetItem", {})
