"""From an API key to an identity: one more kind of credential for the `Authenticator`.

A mistyped key is told by its checksum, and costs nothing. A key that was refused is refused again without a look for
`REFUSED_S`, so that a client which keeps sending it costs one look-up in that time; one whose secret is wrong, or that
never was, counts as forged against its address, which bounds the look-ups of whoever makes keys up.

While the table does not answer, a key that was good is good for `outage_s` after its record was last read, and every
other one is nobody's fault (503, not 401).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Protocol

from tollgate.domain import api_keys
from tollgate.domain.api_keys import KeyRecord
from tollgate.domain.identity import Forged, Identity, KeysUnavailable, Unauthorized
from tollgate.services.recent import Recent

REFUSED_S = 30
FAILED_S = 1
"""After a failed look-up the table is left alone for this long: callers are told at once rather than one by one after a
timeout."""
MAX_KNOWN = 10_000
PEPPERS_AGAIN_S = 30
"""Peppers are read again at most this often, when a record names one that is not known (it was added since)."""


class KeyRecords(Protocol):
    """Where keys are kept. Both may block, and raise `KeysUnavailable`."""

    def find(self, id: str) -> KeyRecord | None:
        """The record as it is now."""
        ...

    def peppers(self) -> Mapping[str, bytes]:
        """What secrets are hashed with, by id."""
        ...


class KeyVerifier:
    """API keys, as a `Verifier`. Thread safe."""

    def __init__(self, records: KeyRecords, *, remember_s: int, outage_s: int) -> None:
        """`remember_s`: how long an identity may be used without another look at the table. Whoever remembers
        elsewhere (API Gateway) comes on top. `outage_s`: see above; as long as all of them remember comes on top."""
        self.remember_s = remember_s
        self._records = records
        self._outage_s = outage_s
        self._known = Recent[str, tuple[KeyRecord, float]](MAX_KNOWN)
        """By id: the record, and when it was read."""
        self._refused = Recent[bytes, tuple[str, float]](MAX_KNOWN)
        """By the key's SHA-256: why, and when. Apart from the good ones, so that a flood of bad keys displaces none."""
        self._peppers: Mapping[str, bytes] = {}
        self._peppers_read = float("-inf")
        self._failed = float("-inf")

    def recognises(self, credential: str) -> bool:
        return credential.startswith(api_keys.PREFIX)

    def warm(self) -> bool:
        """Read the peppers; whether they are there."""
        try:
            self._peppers = self._records.peppers()
        except KeysUnavailable:
            return False
        return True

    def verify(self, credential: str, now: float) -> Identity:
        id = api_keys.parse(credential)
        if id is None:
            raise Unauthorized("an API key with a wrong checksum")
        fingerprint = sha256(credential.encode()).digest()
        refused = self._refused.get(fingerprint)
        if refused is not None and 0 <= now - refused[1] < REFUSED_S:
            raise Unauthorized(f"{refused[0]} (as before)")
        try:
            record = self._record(id, now)
            if record is None:
                raise Forged("an API key that never was, or is long gone")
            return api_keys.holder(record, credential, self._peppers_for(record, now), now)
        except Unauthorized as refusal:
            self._refused.put(fingerprint, (refusal.reason, now))
            raise

    def _record(self, id: str, now: float) -> KeyRecord | None:
        known = self._known.get(id)
        try:
            if 0 <= now - self._failed < FAILED_S:
                raise KeysUnavailable("the API keys' table did not answer just now")
            record = self._records.find(id)
        except KeysUnavailable:
            if not 0 <= now - self._failed < FAILED_S:
                self._failed = now
            if known is not None and 0 <= now - known[1] < self._outage_s:
                return known[0]
            raise
        if record is not None:
            self._known.put(id, (record, now))
        return record

    def _peppers_for(self, record: KeyRecord, now: float) -> Mapping[str, bytes]:
        needed = api_keys.peppers_needed(record, now)
        if not needed <= self._peppers.keys() and not 0 <= now - self._peppers_read < PEPPERS_AGAIN_S:
            self._peppers = self._records.peppers()
            self._peppers_read = now
        if needed and not needed & self._peppers.keys():
            raise KeysUnavailable("an API key was hashed with a pepper that is not there any more")
        return self._peppers
