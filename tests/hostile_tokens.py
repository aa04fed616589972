"""Tokens that must be refused: what RFC 8725 warns of, what libraries have accepted, and what is merely wrong."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from tests.tokens import CLIENT, ISSUER, b64, claims, ec_key, public_pem, rsa_jwk, rsa_key, sign, token


def good() -> dict[str, Any]:
    return claims()


def at(offset_s: float) -> float:
    return time.time() + offset_s


def parts(altered: Callable[[str, str, str], str]) -> str:
    return altered(*token().split("."))


HOSTILE: dict[str, Callable[[], str]] = {
    "alg none": lambda: parts(lambda h, p, s: f"{b64(json.dumps({'alg': 'none', 'kid': 'rsa'}))}.{p}.{s}"),
    "alg none, no signature": lambda: parts(lambda h, p, s: f"{b64(json.dumps({'alg': 'none', 'kid': 'rsa'}))}.{p}."),
    "alg NONE": lambda: sign({"alg": "NoNe", "kid": "rsa"}, good(), rsa_key()),
    "alg list": lambda: sign({"alg": ["RS256"], "kid": "rsa"}, good(), rsa_key()),
    "alg RS512": lambda: sign({"alg": "RS512", "kid": "rsa"}, good(), rsa_key()),
    "alg missing": lambda: sign({"kid": "rsa"}, good(), rsa_key()),
    "HS256 with the public key": lambda: hs256(public_pem(rsa_key())),
    "HS256 with an empty key": lambda: hs256(b""),
    "ES256 header, RSA signature": lambda: sign({"alg": "ES256", "kid": "rsa"}, good(), ec_key()),
    "RSA key id, EC signature": lambda: token(alg="ES256", headers={"kid": "rsa"}),
    "another's key": lambda: token(key=rsa_key("another")),
    "own key in jwk": lambda: token(key=rsa_key("mine"), headers={"jwk": rsa_jwk("rsa", rsa_key("mine"))}),
    "jwk of the real key": lambda: token(headers={"jwk": rsa_jwk()}),
    "jku": lambda: token(headers={"jku": "https://evil.example/jwks.json"}),
    "x5u": lambda: token(headers={"x5u": "https://evil.example/cert.pem"}),
    "x5c": lambda: token(headers={"x5c": ["MIIB"]}),
    "crit": lambda: token(headers={"crit": ["exp"]}),
    "b64 false": lambda: token(headers={"b64": False}),
    "zip": lambda: token(headers={"zip": "DEF"}),
    "nested": lambda: token(headers={"cty": "JWT"}),
    "nested without saying so": lambda: sign({"alg": "RS256", "kid": "rsa"}, token(), rsa_key()),
    "logout token": lambda: token(headers={"typ": "logout+jwt"}),
    "typ is a number": lambda: token(headers={"typ": 1}),
    "no kid": lambda: token(headers={"kid": None}),
    "kid is a number": lambda: token(headers={"kid": 1}),
    "kid is empty": lambda: token(headers={"kid": ""}),
    "kid is long": lambda: token(headers={"kid": "k" * 257}),
    "kid is unknown": lambda: token(headers={"kid": "nobody"}),
    "kid is a path": lambda: token(headers={"kid": "../../dev/null"}),
    "padded": lambda: token() + "==",
    "padded head": lambda: parts(lambda h, p, s: f"{h}=.{p}.{s}"),
    "not canonical": lambda: parts(lambda h, p, s: f"{h}.{p}.{uncanonical(s)}"),
    "standard alphabet": lambda: parts(lambda h, p, s: f"{h}.{p}.+/{s[2:]}"),
    "newline within": lambda: parts(lambda h, p, s: f"{h}.{p}.{s[:9]}\n{s[9:]}"),
    "four parts": lambda: token() + ".e30",
    "two parts": lambda: token().rpartition(".")[0],
    "five parts (JWE)": lambda: "e30.e30.e30.e30.e30",
    "duplicated": lambda: f"{token()}.{token()}",
    "no signature": lambda: parts(lambda h, p, s: f"{h}.{p}."),
    "short signature": lambda: parts(lambda h, p, s: f"{h}.{p}.AA"),
    "other payload": lambda: parts(lambda h, p, s: f"{h}.{b64(json.dumps(claims(tenant='globex')))}.{s}"),
    "other payload, valid header swap": lambda: parts(lambda h, p, s: f"{token(alg='ES256').split('.')[0]}.{p}.{s}"),
    "huge": lambda: token(claims(padding="x" * 9000)),
    "not ASCII": lambda: token() + "é",
    "empty": lambda: "",
    "only dots": lambda: "..",
    "payload is a list": lambda: sign({"alg": "RS256", "kid": "rsa"}, "[]", rsa_key()),
    "payload is not JSON": lambda: sign({"alg": "RS256", "kid": "rsa"}, "{", rsa_key()),
    "payload is not UTF-8": lambda: sign({"alg": "RS256", "kid": "rsa"}, b'{"iss":"\xff"}', rsa_key()),
    "payload is deep": lambda: sign({"alg": "RS256", "kid": "rsa"}, "[" * 5000, rsa_key()),
    "payload has a huge number": lambda: sign({"alg": "RS256", "kid": "rsa"}, '{"exp":' + "9" * 5000 + "}", rsa_key()),
    "duplicate claim": lambda: sign(
        {"alg": "RS256", "kid": "rsa"}, json.dumps(good())[:-1] + ',"tenant":"globex"}', rsa_key()
    ),
    "NaN expiry": lambda: token(claims(exp=float("nan"))),
    "wrong issuer": lambda: token(claims(iss="https://evil.example")),
    "issuer with a slash": lambda: token(claims(iss=ISSUER + "/")),
    "no issuer": lambda: token(claims(iss=None)),
    "issuer list": lambda: token(claims(iss=[ISSUER])),
    "wrong client": lambda: token(claims(client_id="other")),
    "no client": lambda: token(claims(client_id=None)),
    "wrong audience, right client": lambda: token(claims(aud="other")),
    "wrong audiences": lambda: token(claims(aud=["a", "b"])),
    "audience is null": lambda: sign({"alg": "RS256", "kid": "rsa"}, {**good(), "aud": None}, rsa_key()),
    "ID token": lambda: token(claims(token_use="id", aud=CLIENT)),
    "token_use is null": lambda: sign({"alg": "RS256", "kid": "rsa"}, {**good(), "token_use": None}, rsa_key()),
    "ID token of a foreign issuer": lambda: token(claims(token_use=None, aud=CLIENT, nonce="n")),
    "expired": lambda: token(claims(exp=at(-1))),
    "expired long ago": lambda: token(claims(exp=1)),
    "no expiry": lambda: token(claims(exp=None)),
    "expiry is text": lambda: token(claims(exp="9999999999")),
    "expiry is true": lambda: token(claims(exp=True)),
    "not yet valid": lambda: token(claims(nbf=at(90))),
    "nbf is text": lambda: token(claims(nbf="1")),
    "issued in the future": lambda: token(claims(iat=at(90))),
    "no tenant": lambda: token(claims(tenant=None)),
    "tenant is empty": lambda: token(claims(tenant="")),
    "no user": lambda: token(claims(sub="", client_id=CLIENT)),
}


def hs256(key: bytes) -> str:
    message = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'rsa'}))}.{b64(json.dumps(good()))}"
    return f"{message}.{b64(hmac.digest(key, message.encode(), 'sha256'))}"


def uncanonical(part: str) -> str:
    """The same bytes in another spelling: a 256-byte signature's last character has four bits to spare."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return part[:-1] + alphabet[alphabet.index(part[-1]) + 1]
