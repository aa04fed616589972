"""Tokens that must be refused: what RFC 8725 warns of, what libraries have accepted, and what is merely wrong."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tests.tokens import CLIENT, ISSUER, b64, claims, ec_key, public_pem, rsa_jwk, rsa_key, sign, token

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


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
    "alg rs256": lambda: sign({"alg": "rs256", "kid": "rsa"}, good(), rsa_key()),
    "alg with a space": lambda: sign({"alg": "RS256 ", "kid": "rsa"}, good(), rsa_key()),
    "alg with a NUL": lambda: sign({"alg": "RS256\0", "kid": "rsa"}, good(), rsa_key()),
    "alg look-alike": lambda: sign({"alg": "R\u0405256", "kid": "rsa"}, good(), rsa_key()),
    "alg PS256": lambda: sign({"alg": "PS256", "kid": "rsa"}, good(), rsa_key()),
    "alg is null": lambda: head('{"alg": null, "kid": "rsa"}'),
    "two algs": lambda: head('{"alg": "none", "kid": "rsa", "alg": "RS256"}'),
    "two algs, one escaped": lambda: head('{"alg": "RS256", "kid": "rsa", "al\\u0067": "none"}'),
    "two kids": lambda: head('{"alg": "RS256", "kid": "nobody", "kid": "rsa"}'),
    "two types": lambda: head('{"alg": "RS256", "kid": "rsa", "typ": "JWT", "typ": "at+jwt"}'),
    "header is a list": lambda: head('[{"alg": "RS256", "kid": "rsa"}]'),
    "header is text": lambda: head('"RS256"'),
    "header and more": lambda: head('{"alg": "RS256", "kid": "rsa"}{}'),
    "header ends with a NUL": lambda: head('{"alg": "RS256", "kid": "rsa"}\0'),
    "header begins with a mark": lambda: head('\ufeff{"alg": "RS256", "kid": "rsa"}'),
    "header in UTF-16": lambda: head('{"alg": "RS256", "kid": "rsa"}'.encode("utf-16-le")),
    "header has NaN": lambda: head('{"alg": "RS256", "kid": "rsa", "x": NaN}'),
    "header is deep": lambda: head('{"alg": "RS256", "kid": "rsa", "x": ' + "[" * 5000),
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
    "jwk is null": lambda: head('{"alg": "RS256", "kid": "rsa", "jwk": null}'),
    "jku": lambda: token(headers={"jku": "https://evil.example/jwks.json"}),
    "x5u": lambda: token(headers={"x5u": "https://evil.example/cert.pem"}),
    "x5c": lambda: token(headers={"x5c": ["MIIB"]}),
    "crit": lambda: token(headers={"crit": ["exp"]}),
    "crit is empty": lambda: token(headers={"crit": []}),
    "JWE header": lambda: token(headers={"enc": "A256GCM"}),
    "b64 false": lambda: token(headers={"b64": False}),
    "zip": lambda: token(headers={"zip": "DEF"}),
    "nested": lambda: token(headers={"cty": "JWT"}),
    "nested without saying so": lambda: sign({"alg": "RS256", "kid": "rsa"}, token(), rsa_key()),
    "logout token": lambda: token(headers={"typ": "logout+jwt"}),
    "typ of a proof": lambda: token(headers={"typ": "dpop+jwt"}),
    "typ of an event": lambda: token(headers={"typ": "application/secevent+jwt"}),
    "typ twice over": lambda: token(headers={"typ": "application/application/at+jwt"}),
    "typ with a space": lambda: token(headers={"typ": "at+jwt "}),
    "typ is empty": lambda: token(headers={"typ": ""}),
    "typ is a number": lambda: token(headers={"typ": 1}),
    "no kid": lambda: token(headers={"kid": None}),
    "kid is a number": lambda: token(headers={"kid": 1}),
    "kid is empty": lambda: token(headers={"kid": ""}),
    "kid is long": lambda: token(headers={"kid": "k" * 257}),
    "kid is unknown": lambda: token(headers={"kid": "nobody"}),
    "kid is SQL": lambda: token(headers={"kid": "rsa' OR '1'='1"}),
    "kid with a NUL": lambda: token(headers={"kid": "rsa\0"}),
    "kid with a space": lambda: token(headers={"kid": " rsa"}),
    "kid in upper case": lambda: token(headers={"kid": "RSA"}),
    "kid is an object": lambda: token(headers={"kid": {"rsa": 1}}),
    "kid is a URL": lambda: token(headers={"kid": "https://evil.example/key"}),
    "kid is another algorithm's": lambda: token(headers={"kid": "ec"}),
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
    "ES256 in DER": lambda: es256(lambda r, s: encode_dss_signature(r, s)),
    "ES256 of zeros": lambda: es256(lambda r, s: bytes(64)),
    "ES256, r is zero": lambda: es256(lambda r, s: bytes(32) + s.to_bytes(32)),
    "ES256, s is zero": lambda: es256(lambda r, s: r.to_bytes(32) + bytes(32)),
    "ES256, s is the order": lambda: es256(lambda r, s: r.to_bytes(32) + P256_ORDER.to_bytes(32)),
    "ES256, r and s changed over": lambda: es256(lambda r, s: s.to_bytes(32) + r.to_bytes(32)),
    "ES256, longer": lambda: es256(lambda r, s: b"\0" + r.to_bytes(32) + s.to_bytes(32)),
    "RS256, a zero before": lambda: resigned(lambda signature: b"\0" + signature),
    "RS256, a byte behind": lambda: resigned(lambda signature: signature + b"\0"),
    "RS256 of zeros": lambda: resigned(lambda signature: bytes(256)),
    "RS256, plus the modulus": lambda: resigned(
        lambda signature: (int.from_bytes(signature) + rsa_key().public_key().public_numbers().n).to_bytes(257)
    ),
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
    "claims and more": lambda: sign({"alg": "RS256", "kid": "rsa"}, json.dumps(good()) + " {}", rsa_key()),
    "duplicate expiry": lambda: sign(
        {"alg": "RS256", "kid": "rsa"}, json.dumps(claims(exp=1))[:-1] + ',"exp":9999999999}', rsa_key()
    ),
    "duplicate within a claim": lambda: sign(
        {"alg": "RS256", "kid": "rsa"}, json.dumps(good())[:-1] + ',"org":{"id":"a","id":"b"}}', rsa_key()
    ),
    "claims look like none": lambda: sign({"alg": "RS256", "kid": "rsa"}, "null", rsa_key()),
    "endless expiry": lambda: sign({"alg": "RS256", "kid": "rsa"}, body('"exp": 1e400'), rsa_key()),
    "expiry is Infinity": lambda: sign({"alg": "RS256", "kid": "rsa"}, body('"exp": Infinity'), rsa_key()),
    "expiry beyond doubles": lambda: token(claims(exp=2**53 + 1)),
    "negative expiry": lambda: token(claims(exp=-1)),
    "expiry is a list": lambda: token(claims(exp=[at(3600)])),
    "expiry just past, as a fraction": lambda: token(claims(exp=at(-0.5))),
    "expiry is zero": lambda: token(claims(exp=0)),
    "NaN expiry": lambda: token(claims(exp=float("nan"))),
    "wrong issuer": lambda: token(claims(iss="https://evil.example")),
    "issuer with a slash": lambda: token(claims(iss=ISSUER + "/")),
    "issuer in upper case": lambda: token(claims(iss=ISSUER.upper())),
    "issuer look-alike": lambda: token(claims(iss=ISSUER.replace("i", "\u0456"))),
    "issuer with an invisible letter": lambda: token(claims(iss=ISSUER + "\u200b")),
    "issuer in wide letters": lambda: token(claims(iss=ISSUER.replace("issuer", "\uff49ssuer"))),
    "issuer with a line": lambda: token(claims(iss=ISSUER + "\n")),
    "issuer with a port": lambda: token(claims(iss=ISSUER + ":443")),
    "issuer without its scheme": lambda: token(claims(iss=ISSUER.removeprefix("https:"))),
    "issuer object": lambda: token(claims(iss={"iss": ISSUER})),
    "no issuer": lambda: token(claims(iss=None)),
    "issuer list": lambda: token(claims(iss=[ISSUER])),
    "wrong client": lambda: token(claims(client_id="other")),
    "no client": lambda: token(claims(client_id=None)),
    "wrong audience, right client": lambda: token(claims(aud="other")),
    "wrong audiences": lambda: token(claims(aud=["a", "b"])),
    "audience is null": lambda: sign({"alg": "RS256", "kid": "rsa"}, {**good(), "aud": None}, rsa_key()),
    "audience within a list": lambda: token(claims(aud=[[CLIENT]])),
    "audience is an object": lambda: token(claims(aud={CLIENT: 1})),
    "client is a list": lambda: token(claims(client_id=[CLIENT])),
    "ID token that says at+jwt": lambda: token(claims(token_use="id"), headers={"typ": "at+jwt"}),
    "ID token with a hash": lambda: token(claims(at_hash="x"), headers={"typ": "at+jwt"}),
    "token_use in upper case": lambda: token(claims(token_use="ACCESS")),
    "token_use is a list": lambda: token(claims(token_use=["access"])),
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
    "issued is text": lambda: token(claims(iat="1")),
    "issued at no number": lambda: sign({"alg": "RS256", "kid": "rsa"}, body('"iat": 1e400'), rsa_key()),
    "nbf is endless": lambda: sign({"alg": "RS256", "kid": "rsa"}, body('"nbf": 1e400'), rsa_key()),
    "nbf is negative": lambda: token(claims(nbf=-1)),
    "user is a list": lambda: token(claims(sub=["user-1"])),
    "user is a number": lambda: token(claims(sub=1)),
    "user is an object": lambda: token(claims(sub={"sub": "user-1"})),
    "user is long": lambda: token(claims(sub="u" * 257)),
    "user with a line": lambda: token(claims(sub="user-1\nadmin")),
    "user with an invisible letter": lambda: token(claims(sub="user-1\u200b")),
    "user turned about": lambda: token(claims(sub="\u202euser-1")),
    "user is half a letter": lambda: token(claims(sub="\ud800")),
    "tenant is a list": lambda: token(claims(tenant=["acme"])),
    "tenant is space": lambda: token(claims(tenant=" ")),
    "tenant is an item of another kind": lambda: token(claims(tenant="client#x")),
    "plan is a list": lambda: token(claims(plan=["pro"])),
    "scope is an object": lambda: token(claims(scope={"tollgate/invoke": 1})),
    "scopes without end": lambda: token(claims(scope=" ".join(["s"] * 300))),
    "no tenant": lambda: token(claims(tenant=None)),
    "tenant is empty": lambda: token(claims(tenant="")),
    "no user": lambda: token(claims(sub="", client_id=CLIENT)),
}


def head(header: str | bytes) -> str:
    """A token whose header is this, to the letter; its signature is good."""
    message = f"{b64(header)}.{b64(json.dumps(good()))}"
    return f"{message}.{b64(jwt.get_algorithm_by_name('RS256').sign(message.encode(), rsa_key()))}"


def body(claim: str) -> str:
    """Good claims, and one that Python's JSON would not write."""
    name = json.loads(claim.partition(":")[0])
    return json.dumps(claims(**{name: None}))[:-1] + f", {claim}}}"


def es256(altered: Callable[[int, int], bytes]) -> str:
    """A token whose good signature was written in another way."""
    text = token(alg="ES256")
    raw = base64.urlsafe_b64decode(text.rpartition(".")[2] + "==")
    return f"{text.rpartition('.')[0]}.{b64(altered(int.from_bytes(raw[:32]), int.from_bytes(raw[32:])))}"


def resigned(altered: Callable[[bytes], bytes]) -> str:
    text = token()
    return f"{text.rpartition('.')[0]}.{b64(altered(base64.urlsafe_b64decode(text.rpartition('.')[2] + '==')))}"


def hs256(key: bytes) -> str:
    message = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'rsa'}))}.{b64(json.dumps(good()))}"
    return f"{message}.{b64(hmac.digest(key, message.encode(), 'sha256'))}"


def uncanonical(part: str) -> str:
    """The same bytes in another spelling: a 256-byte signature's last character has four bits to spare."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return part[:-1] + alphabet[alphabet.index(part[-1]) + 1]
