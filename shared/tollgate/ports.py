"""What the services need from the outside world. Adapters implement these; `wiring.py` wires them.

Each port is as small as its callers allow. A failure is raised as the error named here, wrapped once, in the adapter.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # not every function needs the policy's schema
    from tollgate.domain.bookkeeping import EntryReport
    from tollgate.domain.identity import Identity
    from tollgate.domain.limits import Admission, BudgetTake, Decision, Settlement, Take
    from tollgate.domain.policy import Policy, TenantRecord
    from tollgate.domain.records import UsageClose
    from tollgate.domain.reports import UsageRow


class StoreUnavailable(Exception):
    """The store did not answer in time, or not in a way that can be trusted. Nothing is known to be taken."""


class CannotDecide(StoreUnavailable):
    """The store answers, but not this: what it holds under these keys is not ours. Others are not concerned."""


class Overloaded(StoreUnavailable):
    """The store answers, but one subject asks more of it than it can take: that subject is turned away for a moment,
    whatever its plan says about stores that fail."""


class StoreClosed(StoreUnavailable):
    """Whoever operates this wants nobody to decide now: everyone is turned away, whatever a plan says about stores that
    fail."""


class LimitStore(Protocol):
    """Shared buckets. `admit` is atomic and idempotent by `Admission.id`; so is `settle`, by `Settlement.id`."""

    name: str
    """``redis``, ``dynamodb`` or ``memory``; what `Decision.store` says."""

    async def admit(self, admission: Admission) -> Decision:
        """Take everything or nothing. Raises `StoreUnavailable`."""
        ...

    async def look(self, admission: Admission) -> Decision:
        """What such a call would be told now, as far as limits decide; `expires_us` and versions have to be 0. Nothing
        is taken. Raises `StoreUnavailable`."""
        ...

    async def settle(self, settlement: Settlement) -> bool:
        """Replace what is held by what was used; True if this call did it, False if there was nothing (left) to do.
        Raises `StoreUnavailable`."""
        ...

    async def replay(self, settlements: Sequence[Settlement]) -> int:
        """Settle those that nobody has settled; how many that were. For many at once of which nearly all are settled:
        to find that out costs little. Raises `StoreUnavailable`."""
        ...

    async def recall(self, takes: Sequence[Take], cold: Sequence[int]) -> list[int | None]:
        """The TATs (µs) that are known of the rates at the places `cold` among an admission's takes, None where none
        is; parallel to `cold`. (All takes of a subject tell where it is counted.) Takes nothing. Raises
        `StoreUnavailable`."""
        ...

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        """Make every budget key's `spent` at least this much (units of the budget). Unknown keys stay unknown: they
        are loaded when they are next asked for. Raises `StoreUnavailable`."""
        ...

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        """Announce newer versions of the policy and of tenants' records; none falls. Raises `StoreUnavailable`."""
        ...

    async def ping(self) -> None:
        """Raises `StoreUnavailable` unless the store answers."""
        ...

    async def aclose(self) -> None: ...


class Spending(Protocol):
    """What the ledger knows to be spent; all that admission needs of it."""

    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        """In each take's window, in the budget's unit; parallel to `takes`. Raises `StoreUnavailable`."""
        ...


class Ledger(Spending, Protocol):
    """The durable account of what was used."""

    async def enter(self, entries: Sequence[UsageClose]) -> EntryReport:
        """Enter each usage id exactly once, with its counters, whatever is repeated."""
        ...

    async def report(
        self,
        *,
        tenant: str | None = None,
        since: str | None = None,
        until: str | None = None,
        where: Mapping[str, str] = ...,
        by: Sequence[str] = ...,
    ) -> list[UsageRow]:
        """The rows of the usage report: of one tenant, of UTC days (``2026-11-21``, both ends included), and of those
        whose columns (`user`, `team` ...) have the values that `where` says. `by`: the columns that are to be told
        apart (all of them); the others may be empty, and the rows fewer."""
        ...


class PolicySource(Protocol):
    """The running policy and tenants' records, as they are now."""

    async def policy(self) -> Policy:
        """The newest good policy. Raises `PolicyUnavailable`."""
        ...

    async def tenant(self, name: str) -> TenantRecord | None:
        """The tenant's record, read consistently; None if there is none. Raises `PolicyUnavailable`."""
        ...


class PolicyUnavailable(Exception):
    """No policy, or no tenant record, can be read now; the message says what to do."""


class AdministratorsUnavailable(Exception):
    """It cannot be told now whether somebody still is an administrator."""


class Administrators(Protocol):
    """Who administers now."""

    async def include(self, pool_user: str) -> bool:
        """Whether the user pool's user of that name is one. Raises `AdministratorsUnavailable`."""
        ...


class Identify(Protocol):
    """Who calls. Raises `tollgate.domain.identity.Unauthorized`."""

    def __call__(self, headers: Mapping[bytes, bytes], ip: str) -> Identity: ...


class UsageLog(Protocol):
    """Where usage records go: one JSON line each, flushed before the call returns."""

    def write(self, record: Mapping[str, Any]) -> None: ...


class Response(Protocol):
    """An upstream's answer whose head is here; iterating gives the body's bytes as they arrive."""

    status: int
    headers: list[tuple[bytes, bytes]]

    def header(self, name: bytes) -> bytes | None: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def read(self, limit: int) -> bytes: ...

    def close(self) -> None: ...


class SecretUnavailable(Exception):
    """A provider key cannot be read."""


class Secrets(Protocol):
    """Provider keys by name."""

    async def get(self, name: str) -> str:
        """Raises `SecretUnavailable`."""
        ...

    async def another(self, name: str, refused: str) -> str | None:
        """The key to try where the provider refused one, None if there is no other. Raises `SecretUnavailable`."""
        ...
