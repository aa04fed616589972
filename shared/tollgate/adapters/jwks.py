"""An issuer's signing keys (a JWK set, RFC 7517), fetched over HTTP and kept.

However many unknown key ids come, the set is fetched at most once per 30 s; while the issuer is down the keys that
are known go on serving. Every key is parsed once, not per token.

A set is fetched on a thread of its own, so that nobody waits for a slow issuer longer than it is worth: a token whose
key is known hardly at all, one whose key is not known yet until the set is there. Only a few may wait for it, because
whoever floods us with unknown key ids must not occupy every thread that verifies.

The signature algorithms are `cryptography`'s, used directly: PyJWT would add nothing to them here but 60 ms
of cold start (docs/adr). It checks these same tokens in the tests.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from tollgate.adapters.telemetry import log
from tollgate.domain.identity import KeysUnavailable

FETCH_PAUSE_S = 30
"""At least this long from one fetch to the next."""
MAX_AGE_S = 600
"""A set older than this is fetched again, so that keys which the issuer withdraws stop serving."""
TIMEOUT_S = 2
"""For connecting, and for each read; a whole fetch gets three times that."""
WAIT_S = 3 * TIMEOUT_S
"""For a set that is being fetched: as long as that can take."""
PATIENCE_S = 0.5
"""For a newer set, where the key is known, and by one caller at a time: an issuer that answers does so sooner. (Lambda
freezes threads with their function: if nobody waited at all, a set might never come.)"""
MAX_WAITING = 8
"""Callers that wait at once for a key that is not known; further ones are answered from what is known."""
MAX_BYTES = 256 * 1024
MIN_RSA_BITS = 2048
MIN_RSA_EXPONENT = 65_537
"""FIPS 186-5: smaller ones have made forgeries of careless verifiers' mistakes."""

# Points of order 8 and less, by their y. With such a key signatures can be made without any secret, and libraries check
# them without complaint.
_ED25519_P = 2**255 - 19
_ORDER_8_Y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y = frozenset({0, 1, _ED25519_P - 1, _ORDER_8_Y, _ED25519_P - _ORDER_8_Y})


class FetchFailed(Exception):
    """The key set could not be had; the message says why."""


class PublicKey(Protocol):
    """One key of the set, ready for use."""

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` was made over `message` with this key's private half."""
        ...


class Rs256(NamedTuple):
    """RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518, 3.3)."""

    key: rsa.RSAPublicKey

    def verify(self, message: bytes, signature: bytes) -> bool:
        return _fits(lambda: self.key.verify(signature, message, padding.PKCS1v15(), SHA256()))


class Es256(NamedTuple):
    """ECDSA on P-256 with SHA-256; the signature is r and s, 32 bytes each (RFC 7518, 3.4)."""

    key: ec.EllipticCurvePublicKey

    def verify(self, message: bytes, signature: bytes) -> bool:
        if len(signature) != 64:
            return False
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
        return _fits(lambda: self.key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256())))


class EdDsa(NamedTuple):
    """Ed25519 (RFC 8037, 3.1)."""

    key: Ed25519PublicKey

    def verify(self, message: bytes, signature: bytes) -> bool:
        return _fits(lambda: self.key.verify(signature, message))


def _fits(check: Callable[[], None]) -> bool:
    try:
        check()
    except InvalidSignature:
        return False
    return True


class Jwks:
    """The keys of one issuer. Thread safe. `clock` gives epoch seconds: a frozen Lambda's monotonic clock stands
    still, while keys age."""

    def __init__(
        self,
        url: str,
        *,
        http_hosts: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.time,
        fetch: Callable[[str], bytes] | None = None,
    ) -> None:
        """Raises `ValueError` for a `url` that keys must not come from (see `check_url`)."""
        self._url = check_url(url, http_hosts)
        self._clock = clock
        self._fetch = fetch or fetch_document
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)
        self._patient = threading.BoundedSemaphore(1)
        self._keys: dict[tuple[str, str], PublicKey] = {}
        self._fetching: threading.Thread | None = None
        self._fetched_at = 0.0
        self._tried_at = float("-inf")
        self._failures = 0

    def find(self, kid: str, alg: str) -> PublicKey | None:
        """The key with this id for this algorithm; None if the issuer has none.

        May fetch the set, and then blocks for a while. Raises `KeysUnavailable` if no set was ever had.
        """
        key = self._keys.get((kid, alg))
        if key is not None:
            if self._clock() - self._fetched_at >= MAX_AGE_S:
                self._await(PATIENCE_S, self._patient)
                key = self._keys.get((kid, alg))
            return key
        self._await(WAIT_S, self._waiting)
        if not self._keys:
            raise KeysUnavailable(f"no signing keys from {self._url}")
        return self._keys.get((kid, alg))

    def current(self) -> bool:
        """Whether the last fetch brought the set."""
        return not self._failures

    def refresh(self) -> None:
        """Begin to fetch the set, unless that is being done or was tried just now."""
        with self._lock:
            if self._fetching is not None:
                return
            now = self._clock()
            # With nothing to serve from, the first retries come sooner: 1, 2, 4 ... 30 s.
            pause = FETCH_PAUSE_S if self._keys else min(FETCH_PAUSE_S, 2 ** max(0, self._failures - 1))
            if 0 <= now - self._tried_at < pause:
                return
            self._tried_at = now
            self._fetching = threading.Thread(target=self._replace, name="signing-keys", daemon=True)
            self._fetching.start()

    def ready(self) -> bool:
        """Whether there are any keys, after what is being fetched has come."""
        self._await(WAIT_S, self._waiting)
        return bool(self._keys)

    def _await(self, at_most_s: float, room: threading.Semaphore) -> None:
        """Wait for a fetch, the one under way or else one that is due, if there is room for one who waits."""
        if not room.acquire(blocking=False):
            return
        try:
            self.refresh()
            fetching = self._fetching
            if fetching is not None:
                fetching.join(at_most_s)
        finally:
            room.release()

    def _replace(self) -> None:
        """Fetch the set, and serve from it if it can be used."""
        try:
            keys = parse(self._fetch(self._url))
        except FetchFailed as failure:
            self._failures += 1
            serving = len(self._keys)
            log("WARNING", "signing keys could not be fetched", url=self._url, error=str(failure), serving=serving)
        else:
            self._failures = 0
            self._fetched_at = self._clock()
            self._keys = keys
        finally:
            self._fetching = None


def parse(body: bytes) -> dict[tuple[str, str], PublicKey]:
    """The usable keys of a JWK set, by key id and algorithm. Raises `FetchFailed` if there are none.

    Keys of other kinds, and broken ones, are passed over: one bad key must not lock everybody out.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FetchFailed("the key set is not JSON") from error
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise FetchFailed("the key set has no list of keys")
    found = dict(usable for entry in entries if isinstance(entry, dict) and (usable := _usable(entry)))
    if not found:
        raise FetchFailed("the key set has no usable key")
    return found


def _usable(entry: Mapping[str, Any]) -> tuple[tuple[str, str], PublicKey] | None:
    """A JWK's key id, algorithm and key, if it may verify signatures with one of our algorithms."""
    kid, kty, curve = entry.get("kid"), entry.get("kty"), entry.get("crv")
    operations = entry.get("key_ops", ["verify"])
    if (
        not isinstance(kid, str)
        or entry.get("use", "sig") != "sig"
        or not isinstance(operations, list)
        or "verify" not in operations
        or "d" in entry  # a private key that is published proves nothing any more
    ):
        return None
    try:
        if kty == "RSA" and entry.get("alg", "RS256") == "RS256":
            exponent, modulus = _number(entry, "e"), _number(entry, "n")
            rsa_key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
            sound = rsa_key.key_size >= MIN_RSA_BITS and exponent >= MIN_RSA_EXPONENT and modulus % 2
            return ((kid, "RS256"), Rs256(rsa_key)) if sound else None
        if kty == "EC" and curve == "P-256" and entry.get("alg", "ES256") == "ES256":
            point = ec.EllipticCurvePublicNumbers(_number(entry, "x"), _number(entry, "y"), ec.SECP256R1())
            return (kid, "ES256"), Es256(point.public_key())
        if kty == "OKP" and curve == "Ed25519" and entry.get("alg", "EdDSA") == "EdDSA":
            return (kid, "EdDSA"), EdDsa(_ed25519(_bytes(entry, "x")))
    except (ValueError, UnsupportedAlgorithm):
        return None
    return None


def _ed25519(raw: bytes) -> Ed25519PublicKey:
    """Raises `ValueError` for what is no point, is written in another way than the one, or has a small order."""
    y = int.from_bytes(raw, "little") & (1 << 255) - 1  # the bit above is the sign of x
    if y >= _ED25519_P or y in _SMALL_ORDER_Y:
        raise ValueError("not a point of large order")
    return Ed25519PublicKey.from_public_bytes(raw)


def _number(entry: Mapping[str, Any], name: str) -> int:
    """A big-endian number in base64url (RFC 7518, 2). Raises `ValueError`."""
    return int.from_bytes(_bytes(entry, name))


def _bytes(entry: Mapping[str, Any], name: str) -> bytes:
    text = entry.get(name)
    if not isinstance(text, str):
        raise ValueError(f"{name} is not text")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def check_url(url: str, http_hosts: frozenset[str] = frozenset()) -> str:
    """`url` itself, if keys may come from there: https, or http from loopback or one of `http_hosts`.

    Raises `ValueError`: whoever can change the key set on its way here can sign tokens.
    """
    parts = urlsplit(url)
    if not parts.hostname or parts.username is not None or parts.fragment:
        raise ValueError(f"JWKS URL {url!r}: expected https://host/path")
    plain = parts.scheme == "http" and (is_loopback(parts.hostname) or parts.hostname in http_hosts)
    if parts.scheme != "https" and not plain:
        raise ValueError(f"JWKS URL {url!r}: must be https (http only on loopback)")
    return url


def emulator_hosts(environ: Mapping[str, str]) -> frozenset[str]:
    """The hosts of an emulated AWS that the environment names; its key set comes over plain http."""
    urls = (environ.get("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER"), environ.get("AWS_ENDPOINT_URL"))
    named = [urlsplit(url).hostname for url in urls if url]
    if localstack := environ.get("LOCALSTACK_HOST"):
        named.append(urlsplit(f"//{localstack}").hostname)
    return frozenset(name for name in named if name)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def fetch_document(url: str) -> bytes:
    """GET a small document: no redirects, no proxies, bounded in time and size. Raises `FetchFailed`."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    deadline = time.monotonic() + 2 * TIMEOUT_S  # and one more read
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # an answer's head that comes a byte at a time never reaches the timeout of a read
    watch = threading.Timer(2 * TIMEOUT_S, _hang_up, (connection,))
    watch.daemon = True
    watch.start()
    try:
        connection.request("GET", target, headers={"Accept": "application/json", "Connection": "close"})
        response = connection.getresponse()
        if time.monotonic() > deadline:
            raise FetchFailed("too slow")
        if response.status != 200:
            raise FetchFailed(f"status {response.status}")
        body = bytearray()
        while chunk := response.read1(65_536):
            body += chunk
            if len(body) > MAX_BYTES:
                raise FetchFailed(f"more than {MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise FetchFailed("too slow")
        if response.length:  # read1, unlike read, takes an early end for the end
            raise FetchFailed(f"{response.length} bytes short")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchFailed(f"{type(error).__name__}: {error}"[:200]) from error
    finally:
        watch.cancel()
        connection.close()
    return bytes(body)


def _hang_up(connection: http.client.HTTPConnection) -> None:
    """End what another thread waits for: it reads an end of file."""
    if (sock := connection.sock) is not None:
        with suppress(OSError):  # it has just been closed
            sock.shutdown(socket.SHUT_RDWR)
