"""An issuer of real RS256 tokens, and a stand-in for AWS that only counts what it is asked; both on one port."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

CLIENT = "bench"
KID = "bench-1"


class Issuer:
    """Signs tokens, serves its keys at `/jwks`, and answers every POST as an empty DynamoDB would."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.aws_calls: Counter[str] = Counter()
        """Operations that were asked of AWS, such as ``DynamoDB_20120810.GetItem``."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self) -> dict[str, str]:
        """What makes a gateway believe this issuer, and take this for AWS."""
        return {
            "TOLLGATE_ISSUER": self.url,
            "TOLLGATE_JWKS_URL": f"{self.url}/jwks",
            "TOLLGATE_CLIENT_IDS": CLIENT,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "eu-central-1",
        }

    def token(self, tenant: str, user: str = "bench-user") -> str:
        """An access token, good for an hour."""
        now = int(time.time())
        claims = {
            "iss": self.url, "sub": user, "client_id": CLIENT, "token_use": "access", "tenant": tenant,
            "iat": now, "exp": now + 3600,
        }  # fmt: skip
        head = _b64(json.dumps({"alg": "RS256", "typ": "JWT", "kid": KID}).encode())
        message = f"{head}.{_b64(json.dumps(claims).encode())}"
        return f"{message}.{_b64(self._key.sign(message.encode(), padding.PKCS1v15(), SHA256()))}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _key_set(self) -> bytes:
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": KID,
            "n": _b64(numbers.n.to_bytes(256)), "e": _b64(numbers.e.to_bytes(3)),
        }  # fmt: skip
        return json.dumps({"keys": [key]}).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        key_set, aws_calls = self._key_set(), self.aws_calls

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(key_set)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                aws_calls[self.headers.get("x-amz-target", "?")] += 1
                self._answer(b"{}")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        return Handler


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
