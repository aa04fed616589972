"""A small identity provider that really answers on loopback: a key set to fetch, keys to rotate, and bad days."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.tokens import claims

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Issuer:
    """Signs access tokens as RFC 9068 has them. `asked` are the paths that anybody requested of it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.down = False
        self.asked: list[str] = []
        self._keys: dict[str, tuple[str, Private]] = {}
        self.rotate("RS256")

    def rotate(self, alg: str) -> None:
        """Publish another key and sign with it; the older ones stay."""
        makers: dict[str, Any] = {
            "RS256": lambda: rsa.generate_private_key(65537, 2048),
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }
        self._keys[f"key-{len(self._keys)}"] = alg, makers[alg]()

    def settings(self, **more: Any) -> dict[str, Any]:
        """Its entry of TOLLGATE_ISSUERS."""
        entry = {"issuer": self.url, "jwks_url": f"{self.url}/jwks", "audiences": ["tollgate"]}
        return entry | {"algorithms": ["RS256", "ES256", "EdDSA"]} | more

    def token(self, *, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        kid, (alg, key) = list(self._keys.items())[-1]
        usual = {"iss": self.url, "aud": "tollgate", "token_use": None, "scope": "tollgate/invoke"}
        payload = claims(**{**usual, **changes})
        return jwt.encode(payload, key, alg, {"typ": "at+jwt", "kid": kid, **(headers or {})})

    def key_set(self) -> bytes:
        algorithms = jwt.algorithms.get_default_algorithms()
        found = [
            {**algorithms[alg].to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": alg, "use": "sig"}  # type: ignore[call-overload]  # PyJWT's overloads
            for kid, (alg, key) in self._keys.items()
        ]
        return json.dumps({"keys": found}).encode()


@contextmanager
def serving() -> Iterator[Issuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            found = self.path == "/jwks" and not issuer.down
            self.send_response(200 if found else 503)
            self.end_headers()
            if found:
                self.wfile.write(issuer.key_set())

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = Issuer(server.server_address[1])
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
