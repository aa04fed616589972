"""AWS on loopback: moto's server, with DynamoDB's requests made one at a time.

moto checks a condition and writes in two steps, so that concurrent conditional writes grant more than they should
(322 of 320 were seen). Real DynamoDB serialises the writes of an item; a lock around every DynamoDB request gives
the same guarantee here.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tollgate.local.children import Child, listening

WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]

ACCOUNT = "123456789012"
"""The account in which moto creates everything."""
BACKENDS = ("dynamodb", "dynamodbstreams", "cognitoidp", "sqs", "logs", "secretsmanager", "events")
"""What the stack uses: imported while others still start. Everything else that moto has is imported when asked for."""


class Serialised:
    """A WSGI application whose DynamoDB requests run one at a time."""

    def __init__(self, app: WsgiApp) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not environ.get("HTTP_X_AMZ_TARGET", "").startswith("DynamoDB"):
            return self._app(environ, start_response)
        # read the body first: a slow sender must not hold up the others
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        with self._lock:
            return self._app(environ, start_response)


def forget_old_iterators(limit: int = 1000) -> None:
    """moto keeps every shard iterator that it ever gave out, and each look at a stream makes one: in a stack that
    runs for days that is all of memory."""
    from moto.dynamodbstreams.models import DynamoDBStreamsBackend

    backend: Any = DynamoDBStreamsBackend
    original = backend.get_records

    def get_records(self: Any, iterator_arn: str, number: int) -> Any:
        answer = original(self, iterator_arn, number)
        while len(self.shard_iterators) > limit:
            del self.shard_iterators[next(iter(self.shard_iterators))]
        return answer

    backend.get_records = get_records


def application() -> WsgiApp:
    """moto's server as a WSGI application, serialised where that matters."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    from tollgate.local import moto_client_secrets, moto_speed, moto_transactions

    moto_speed.install()
    moto_transactions.install()
    moto_client_secrets.install()
    return Serialised(DomainDispatcherApplication(create_backend_app))


def aws_child(port: int, env: Mapping[str, str], on_death: Callable[[], None]) -> Child:
    """The process that serves AWS's APIs, not started yet. It keeps everything in memory: if it dies, the tables and
    the ledger are gone."""
    command = [sys.executable, "-m", "tollgate.local.aws", "--port", str(port)]
    return Child("aws", command, env, ready=lambda: listening(port), on_death=on_death)


def serve(port: int) -> None:
    """Serve AWS's APIs on 127.0.0.1 until SIGTERM."""
    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from werkzeug.serving import make_server

    # every request is a line in werkzeug's log, and a first request of a service some more in moto's
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # imported before listening, so that whoever waits for the port does not wait again at the first call
    for backend in BACKENDS:
        importlib.import_module(f"moto.{backend}.urls")
    forget_old_iterators()
    make_server("127.0.0.1", port, application(), threaded=True, request_handler=MotoRequestHandler).serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tollgate.local.aws", description=serve.__doc__)
    parser.add_argument("--port", type=int, required=True)
    serve(parser.parse_args().port)
