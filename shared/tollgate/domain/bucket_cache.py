"""What this container already knows: buckets that refused a moment ago refuse again, without a store call.

A bucket's true TAT is never smaller than the one last seen, but for what is given back or changed by operators. So a
refusal is repeated for 1 s where tokens can be given back, for 10 s otherwise, and never for concurrency slots: an
operator's change is felt within 10 s. Only refusals are remembered, so an admitted request costs one empty look-up, and
a caller who floods costs two calls for each that is admitted: that one, and the next, which is refused.
"""

from __future__ import annotations

from collections import OrderedDict

from tollgate.domain.limits import Admission, BudgetTake, Decision, RateTake, SlotTake, Status, Take, Unit, fits
from tollgate.domain.takes import Takes

CAPACITY = 50_000
"""Entries; about 10 MB."""
TRUST_US = 10_000_000
TRUST_REFUNDABLE_US = 1_000_000


class BucketCache:
    """Bounded, least recently learned out first. Also keeps the offset of the store's clock, so that a container
    whose own clock is off (Lambda freezes processes) still computes the store's moments."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._seen: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Key -> (value, until when it is trusted, on the store's clock)."""
        self._offset_us = 0

    def __len__(self) -> int:
        return len(self._seen)

    def now_us(self, local_us: int) -> int:
        """The store's clock, as far as the last answer told."""
        return local_us + self._offset_us

    def learn(self, admission: Admission, decision: Decision, local_us: int) -> None:
        """Remember what a store's decision shows; `local_us` is this container's clock when it arrived."""
        self._offset_us = decision.now_us - local_us
        if decision.status is not Status.REFUSED:
            return
        for take, value in zip(admission.takes, decision.values, strict=True):
            if isinstance(take, SlotTake) or fits(take, value, decision.now_us):
                continue
            refundable = isinstance(take, BudgetTake) or take.limit.unit is not Unit.REQUESTS
            trust = TRUST_REFUNDABLE_US if refundable else TRUST_US
            self._seen.pop(take.key, None)
            self._seen[take.key] = (value, decision.now_us + trust)
            if len(self._seen) > self._capacity:
                self._seen.popitem(last=False)

    def refuses(self, admission: Admission, local_us: int) -> tuple[Admission, Decision] | None:
        """A refusal that the store would certainly give too, or None. The admission returned holds only the takes that
        are known to refuse."""
        every = Takes.of(admission.takes)
        if self._seen.keys().isdisjoint(every.footprint.keys):
            return None
        now = self.now_us(local_us)
        takes: list[Take] = []
        values: list[int] = []
        for take in every:
            seen = self._seen.get(take.key)
            if seen is None:
                continue
            value, until = seen
            # A clock set back must not prolong trust: what was learned in the future is forgotten.
            if now >= until or now < until - TRUST_US:
                del self._seen[take.key]
            elif isinstance(take, RateTake | BudgetTake) and not fits(take, value, now):
                takes.append(take)
                values.append(value)
        if not takes:
            return None
        known = Admission(admission.id, takes, admission.expires_us, admission.tenant)
        return known, Decision(Status.REFUSED, now, values, store="local", local=True)
