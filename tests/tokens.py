"""An issuer of tokens for tests, with real keys; and what an attacker would make of its tokens."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tollgate.adapters.jwks import FetchFailed, Jwks
from tollgate.domain.identity import Unauthorized
from tollgate.domain.issuer_settings import issuers
from tollgate.domain.issuers import Issuer
from tollgate.services.authorize import Authenticator
from tollgate.services.tokens import TokenVerifier

ISSUER = "https://issuer.example"
CLIENT = "client-1"


def b64(raw: bytes | str) -> str:
    return base64.urlsafe_b64encode(raw.encode() if isinstance(raw, str) else raw).rstrip(b"=").decode()


@cache
def rsa_key(name: str = "rsa", bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def rsa_jwk(kid: str = "rsa", key: rsa.RSAPrivateKey | None = None, **extra: Any) -> dict[str, Any]:
    public = (key or rsa_key()).public_key()
    return {**jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True), "kid": kid, **extra}


def ec_jwk(kid: str = "ec") -> dict[str, Any]:
    return {**jwt.algorithms.ECAlgorithm.to_jwk(ec_key().public_key(), as_dict=True), "kid": kid}


def key_set(*jwks: dict[str, Any]) -> bytes:
    return json.dumps({"keys": jwks or [rsa_jwk(), ec_jwk()]}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a good access token; a change to None drops the claim."""
    now = int(time.time())
    base = {
        "iss": ISSUER,
        "sub": "user-1",
        "client_id": CLIENT,
        "token_use": "access",
        "tenant": "acme",
        "plan": "pro",
        "scope": "tollgate/invoke",
        "iat": now,
        "exp": now + 3600,
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def token(
    payload: dict[str, Any] | None = None,
    *,
    headers: dict[str, Any] | None = None,
    key: Any = None,
    alg: str = "RS256",
) -> str:
    """A signed token; `headers` add to or (with None) take from the usual ones."""
    header = {"kid": "ec" if alg == "ES256" else "rsa", **(headers or {})}
    signer = key or (ec_key() if alg == "ES256" else rsa_key())
    return sign({"alg": alg, "typ": "JWT", **header}, payload or claims(), signer)


def sign(header: dict[str, Any], payload: dict[str, Any] | bytes | str, key: Any) -> str:
    """Sign anything as it is: PyJWT itself would refuse to make most of the tokens that tests need."""
    header = {name: value for name, value in header.items() if value is not None}
    body = payload if isinstance(payload, bytes | str) else json.dumps(payload)
    message = f"{b64(json.dumps(header))}.{b64(body)}"
    algorithm = jwt.get_algorithm_by_name(header["alg"] if header.get("alg") in ("RS256", "ES256") else "RS256")
    return f"{message}.{b64(algorithm.sign(message.encode(), key))}"


class Clock:
    """Stands still, and is moved by hand."""

    def __init__(self) -> None:
        self._began = time.time()
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return self._began + self.ahead_s


class KeySet:
    """Serves a key set, counts who asks, and can be down."""

    def __init__(self, body: bytes | None = None) -> None:
        self.body = body or key_set()
        self.fetches = 0
        self.down = False

    def __call__(self, url: str) -> bytes:
        self.fetches += 1
        if self.down:
            raise FetchFailed("down")
        return self.body


JWKS_URL = f"{ISSUER}/.well-known/jwks.json"


ENVIRONMENT = {"TOLLGATE_ISSUER": ISSUER, "TOLLGATE_CLIENT_IDS": CLIENT}


def rules(**changes: Any) -> Issuer:
    """Those of the plain variables for this issuer."""
    (issuer,) = issuers(ENVIRONMENT)
    return issuer._replace(**changes)


def authenticator(
    keys: Callable[[str], bytes], clock: Callable[[], float] = time.time, **changes: Any
) -> Authenticator:
    """As `tollgate serve` makes it, for this issuer."""
    jwks = Jwks(JWKS_URL, clock=clock, fetch=keys)
    return Authenticator([TokenVerifier([(rules(**changes), jwks)])], clock=clock)


def refused(call: Callable[[], object]) -> str:
    """The reason why `call` refuses; what a caller sees is always the same word."""
    with pytest.raises(Unauthorized) as caught:
        call()
    assert str(caught.value) == "Unauthorized"
    return caught.value.reason
