"""What this container already knows: buckets that refused a moment ago refuse again, without a store call.

A bucket's true TAT is never smaller than the one last seen, but for what is given back or changed by operators. So a
refusal is repeated for as long as the store says (`Decision.firm_us`), 1 s at most where tokens can be given back, and
never for concurrency slots: an operator's change is felt within 10 s. What is known is renewed by every answer that
shows it. Only refusals make it known, so an admitted request costs one empty look-up, and a caller who floods costs a
call for each that is admitted. When trust ends, one request asks the store; the others wait for what it hears.
"""

from __future__ import annotations

from collections import OrderedDict

from tollgate.domain.limits import (
    FIRM_US,
    Admission,
    BudgetTake,
    Decision,
    SlotTake,
    Status,
    Take,
    Unit,
    fits,
)
from tollgate.domain.takes import Takes

CAPACITY = 50_000
"""Entries; about 10 MB."""
TRUST_REFUNDABLE_US = 1_000_000
ASKING_US = 100_000
"""For how long the others are refused while one asks the store again."""


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
        """The store's clock, as far as the last answer told; ahead by what that took at most, and never behind, or
        refusals would last too long."""
        return local_us + self._offset_us

    def learn(self, admission: Admission, decision: Decision, asked_us: int) -> None:
        """Remember what a store's decision shows; `asked_us` is this container's clock when it was asked. What this
        container has decided alone tells nothing of the stores' buckets, nor does an answer that decides nothing."""
        self._offset_us = decision.now_us - asked_us
        refused = decision.status is Status.REFUSED
        if decision.local or not (refused or decision.admitted):
            self.forget(admission)  # others need not wait for what nobody was told
            return
        if not refused and not self._knows(admission):
            return
        for take, value in zip(admission.takes, decision.values, strict=True):
            known = self._seen.pop(take.key, None) is not None
            if isinstance(take, SlotTake) or not (known or (refused and not fits(take, value, decision.now_us))):
                continue
            refundable = isinstance(take, BudgetTake) or take.limit.unit is not Unit.REQUESTS
            trust = min(decision.firm_us, TRUST_REFUNDABLE_US) if refundable else decision.firm_us
            if trust:
                self._seen[take.key] = (value, decision.now_us + trust)
            if len(self._seen) > self._capacity:
                self._seen.popitem(last=False)

    def forget(self, admission: Admission) -> None:
        """What is known of these limits is no longer so."""
        if self._seen:
            for key in Takes.of(admission.takes).footprint.keys:
                self._seen.pop(key, None)

    def _knows(self, admission: Admission) -> bool:
        return bool(self._seen) and not self._seen.keys().isdisjoint(Takes.of(admission.takes).footprint.keys)

    def refuses(self, admission: Admission, local_us: int) -> tuple[Admission, Decision] | None:
        """A refusal that the store would certainly give too, or None: ask it. The admission returned holds only the
        takes that are known to refuse."""
        if not self._knows(admission):
            return None
        now = self.now_us(local_us)
        takes: list[Take] = []
        values: list[int] = []
        lapsed: list[Take] = []
        for take in admission.takes:
            seen = self._seen.get(take.key)
            if seen is None:
                continue
            value, until = seen
            fit = isinstance(take, SlotTake) or fits(take, value, now)
            # A clock set back must not prolong trust: what was learned in the future is forgotten.
            if now < until - FIRM_US or (fit and now >= until):
                del self._seen[take.key]
            elif now >= until:
                lapsed.append(take)
            elif not fit:
                takes.append(take)
                values.append(value)
        if not takes:
            for take in lapsed:
                self._seen[take.key] = self._seen[take.key][0], now + ASKING_US
            return None
        known = Admission(admission.id, takes, admission.expires_us, admission.tenant)
        return known, Decision(Status.REFUSED, now, values, store="local", local=True)
