"""API keys: what they look like, and what is kept of them.

    tg_3kTz9QvB1xYpA_0hV...                       ...Xb4tZq9
    |  |             |                               |
    |  public id     secret, 192 random bits         checksum
    prefix, for secret scanners (`PATTERN`)

The id names a key in lists, logs and reports. The checksum tells a typo, and a scanner's false find, without a look at
any table; it proves nothing. The secret itself is never kept: a record holds a keyed hash of the whole key
(HMAC-SHA-256, whose key, the pepper, is not in the table), so that who reads the table cannot use a key, and who can
write to it cannot make one. A fast hash is right here: nobody can try 2^192 secrets, whatever a try costs.

Pure: whoever makes a key brings the random bytes.
"""

from __future__ import annotations

import hmac
import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from tollgate.domain.identity import INVOKE, MAX_EPOCH, Forged, Identity, Unauthorized, granted

PREFIX = "tg_"
ID_BYTES = 9
SECRET_BYTES = 24
PATTERN = r"tg_[0-9A-Za-z]{13}_[0-9A-Za-z]{39}"
"""For secret scanners; what it finds is a key only if its checksum is right (`parse`)."""
NEVER = MAX_EPOCH
"""When a key without an expiry expires."""

SCOPES = granted({INVOKE})
"""What every key is good for; its restrictions say what it may do of that."""

_PARTS = re.compile(r"tg_([0-9A-Za-z]{13})_[0-9A-Za-z]{33}([0-9A-Za-z]{6})")
_ID = re.compile(r"(?:tg_)?([0-9A-Za-z]{13})(?:_[0-9A-Za-z]{39})?")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Secret(NamedTuple):
    """One secret of a key. A key has two while it is rotated, the old one `until` a moment (epoch seconds)."""

    hash: str
    """`hash_of` the whole key, in hexadecimal."""
    pepper: str
    """Which pepper it was hashed with."""
    until: int = NEVER


class KeyRecord(NamedTuple):
    """What the table says of a key, as far as callers are concerned. Optional parts are ``""``."""

    id: str
    tenant: str
    user: str
    team: str
    secrets: tuple[Secret, ...]
    expires_at: int = NEVER
    """Epoch seconds."""
    revoked: bool = False
    restrictions: str = ""
    """What narrows the key down; see `domain.restrictions`."""


def make(id_bytes: bytes, secret_bytes: bytes) -> str:
    """A key of `ID_BYTES` and `SECRET_BYTES` random bytes."""
    return with_secret(_base62(id_bytes, 13), secret_bytes)


def with_secret(id: str, secret_bytes: bytes) -> str:
    """A key with this id and a secret of `SECRET_BYTES` random bytes."""
    if len(secret_bytes) != SECRET_BYTES:
        raise ValueError(f"a secret is made of {SECRET_BYTES} random bytes")
    text = f"{PREFIX}{id}_{_base62(secret_bytes, 33)}"
    return text + _checksum(text)


def parse(text: str) -> str | None:
    """The id of a key; None if this is none (a typo, a cut-off line, something else)."""
    found = _PARTS.fullmatch(text)
    return found[1] if found is not None and _checksum(text[:-6]) == found[2] else None


def id_of(text: str) -> str | None:
    """The id that an operator means: a bare id, one with the prefix, or a whole key (one that leaked, say)."""
    found = _ID.fullmatch(text.strip())
    return found[1] if found is not None else None


def hash_of(pepper: bytes, key: str) -> str:
    """What is kept of a key, in hexadecimal."""
    return hmac.digest(pepper, key.encode(), "sha256").hex()


def holder(record: KeyRecord, key: str, peppers: Mapping[str, bytes], now_s: float) -> Identity:
    """Whose key this is, as its record says. All secrets are compared, each in constant time.

    Raises `Forged` where the secret was never this key's, `Unauthorized` where it is not any more.
    """
    until = 0
    for secret in record.secrets:
        pepper = peppers.get(secret.pepper)
        if pepper is not None and hmac.compare_digest(hash_of(pepper, key), secret.hash):
            until = max(until, secret.until)
    if not until:
        raise Forged("not this API key's secret")
    if record.revoked:
        raise Unauthorized("revoked API key")
    expires_at = min(until, record.expires_at)
    if now_s >= expires_at:
        raise Unauthorized("expired API key" if record.expires_at <= until else "an API key's old secret")
    return Identity(
        tenant=record.tenant,
        user=record.user,
        team=record.team,
        key=record.id,
        scopes=SCOPES,
        expires_at=expires_at,
        restrictions=record.restrictions,
    )


def peppers_needed(record: KeyRecord, now_s: float) -> frozenset[str]:
    """The peppers without which nobody can tell whether a key is this one; none for a key that has ended."""
    if record.revoked or now_s >= record.expires_at:
        return frozenset()
    return frozenset(secret.pepper for secret in record.secrets if now_s < secret.until)


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode()).to_bytes(4, "big"), 6)


def _base62(raw: bytes, length: int) -> str:
    """A number in letters and digits, which a double click selects as one word; always `length` of them."""
    number = int.from_bytes(raw, "big")
    digits: list[str] = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    if number:
        raise ValueError(f"{len(raw)} bytes do not fit into {length} characters")
    return "".join(reversed(digits))
