"""From a credential to an identity: what every kind of credential shares.

A `Verifier` knows one kind (JWT access tokens, say). The `Authenticator` in front of them remembers who was verified,
by the credential's hash and never the credential itself, and stops listening to addresses that send forgeries.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Protocol

from tollgate.domain import keys
from tollgate.domain.identity import Forged, Identity, TooManyFailures, Unauthorized
from tollgate.services.recent import Recent

MAX_CREDENTIAL = 8192
"""Characters; API Gateway's limit for all headers together is 10,240 bytes."""
MAX_REMEMBERED = 10_000
GOOD_LATELY_S = 600
"""For how long a credential that was good is listened to, though its address sends forgeries: some may be remembered
for seconds only, and must not be locked out by their neighbours."""
FORGED_PER_MINUTE = 20
"""How many forged credentials one address may send before it is refused without a look."""
FAILED_PER_MINUTE = 600
"""The same for credentials that fail in any way."""


class Verifier(Protocol):
    """One kind of credential. Thread safe; `verify` may block (it is never called on an event loop)."""

    remember_s: int
    """How long an identity may be remembered, in seconds, and so how late a revocation is felt at most."""

    def recognises(self, credential: str) -> bool:
        """Whether this looks like a credential of this kind; no IO, says nothing about its truth."""
        ...

    def verify(self, credential: str, now: float) -> Identity:
        """Who holds it; `now` in epoch seconds.

        Raises `Unauthorized`; `Forged`, where no honest client can have sent it; `KeysUnavailable`, where that cannot
        be told now.
        """
        ...

    def warm(self) -> bool:
        """Fetch what the first `verify` would wait for; whether it is there. Never raises."""
        ...


class Authenticator:
    """Tells who sends a credential. Thread safe; used as it is by the authorizer function and in `tollgate serve`."""

    def __init__(
        self,
        verifiers: Sequence[Verifier],
        *,
        forged_per_minute: int = FORGED_PER_MINUTE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._verifiers = tuple(verifiers)
        self._clock = clock
        self._known = _Remembered(MAX_REMEMBERED)
        self._good_lately = _Remembered(MAX_REMEMBERED)
        """Credentials that are listened to, whatever else comes from their address; they are verified all the same."""
        self._forgeries = _Attempts(forged_per_minute)
        self._failures = _Attempts(FAILED_PER_MINUTE)

    def warm(self) -> bool:
        """Whether every verifier has what it needs; never raises."""
        warmed = [verifier.warm() for verifier in self._verifiers]  # every one, whatever the first says
        return all(warmed)

    def recall(self, credential: bytes) -> Identity | None:
        """Who sends this, if the same was verified lately: microseconds, no IO, fit for an event loop.

        None says nothing about the credential: ask `verify`, away from the event loop, because it may do IO.
        """
        return self._known.holder(_fingerprint(credential), self._clock())

    def verify(self, credential: bytes, ip: str = "") -> Identity:
        """Who sends this. `ip` is the caller's address, for counting failures.

        Raises `Unauthorized`; and `KeysUnavailable` where that cannot be told now.
        """
        now = self._clock()
        fingerprint = _fingerprint(credential)
        if (known := self._known.holder(fingerprint, now)) is not None:
            return known
        source = keys.address(ip)
        wait_s = max(self._forgeries.wait_s(source, now), self._failures.wait_s(source, now))
        if wait_s > 0 and self._good_lately.holder(fingerprint, now) is None:
            raise TooManyFailures(wait_s)
        try:
            identity, remember_s = self._verify(credential, now)
        except Unauthorized as refusal:
            self._failures.count(source, now)
            if isinstance(refusal, Forged):
                self._forgeries.count(source, now)
            raise
        self._known.remember(fingerprint, identity, min(identity.expires_at, now + remember_s), now)
        self._good_lately.remember(fingerprint, identity, now + GOOD_LATELY_S, now)
        return identity

    def _verify(self, credential: bytes, now: float) -> tuple[Identity, int]:
        """Who sends this, and for how many seconds that may be remembered."""
        if not 0 < len(credential) <= MAX_CREDENTIAL or not credential.isascii():
            raise Unauthorized(f"not a credential of at most {MAX_CREDENTIAL} characters")
        text = credential.decode("ascii")
        for verifier in self._verifiers:
            if verifier.recognises(text):
                return verifier.verify(text, now), verifier.remember_s
        raise Unauthorized("not a kind of credential that is accepted")


def _fingerprint(credential: bytes) -> bytes:
    """What is remembered in its place. (BLAKE2b: with a kilobyte of token, half the price of OpenSSL's SHA-256.)"""
    return blake2b(credential, digest_size=32).digest()


class _Remembered(Recent[bytes, tuple[Identity, float]]):
    """Identities by the fingerprint of their credential, each with the time until which it is good (epoch seconds)."""

    def remember(self, fingerprint: bytes, identity: Identity, until: float, now: float) -> None:
        """And forget the oldest whose time is over: a credential that was replaced does not come again."""
        self.put(fingerprint, (identity, until))
        self.drop_oldest(lambda item: item[1] <= now)

    def holder(self, fingerprint: bytes, now: float) -> Identity | None:
        item = self.get(fingerprint)
        return item[0] if item is not None and now < item[1] else None


class _Attempts:
    """A token bucket of attempts per address: as many at once as it refills in a minute.

    What no honest client can send (`Forged`) has a small one. All failures have a large one: a client that keeps
    sending its expired token must not lock out its neighbours behind the same address, unless it does nothing else.
    """

    PERIOD_S = 60.0

    def __init__(self, per_minute: int, capacity: int = 10_000) -> None:
        self._cost_s = self.PERIOD_S / per_minute
        self._capacity = capacity
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, source: str, now: float) -> int:
        """Whole seconds until this address is listened to again; 0: now."""
        with self._lock:
            full_at = self._full_at.get(source, now)
        excess = full_at - now + self._cost_s - self.PERIOD_S
        return 0 if excess < 1e-6 else int(excess) + 1

    def count(self, source: str, now: float) -> None:
        with self._lock:
            full_at = max(self._full_at.pop(source, now), now) + self._cost_s
            # an attempt that was under way when the bucket ran dry may overdraw it, but not without end
            self._full_at[source] = min(full_at, now + self.PERIOD_S)
            if len(self._full_at) > self._capacity:
                self._full_at.popitem(last=False)
