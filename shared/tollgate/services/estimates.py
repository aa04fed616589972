"""What this container knows of likely prompt and answer lengths: what it saw itself, and what the store tells.

Nothing here calls a store. An admission asks for what is shared, every few seconds; a settlement tells what a call
used, seldom enough to cost nothing.
"""

from __future__ import annotations

from collections import OrderedDict

from tollgate.domain import keys
from tollgate.domain.dataclass import dataclass
from tollgate.domain.estimates import Learned, Sample

CAPACITY = 10_000
ASK_EVERY_US = 10_000_000
"""How old what the store told may be."""
TELL_EVERY_US = 100_000
"""A busy container tells some of its calls; a Lambda environment, which sees few, tells all."""


@dataclass(slots=True)
class Estimate:
    """Of one tenant and model."""

    tenant: str
    model: str
    learned: Learned
    heard_us: int = -ASK_EVERY_US
    told_us: int = -TELL_EVERY_US

    @property
    def key(self) -> str:
        """Where the store keeps it."""
        return keys.estimate_key(self.tenant, self.model)

    def ask(self, now_us: int) -> str:
        """The key to ask for with this admission; empty while what is known is new."""
        return "" if 0 <= now_us - self.heard_us < ASK_EVERY_US else self.key

    def learn(self, sample: Sample, now_us: int) -> bool:
        """Learn from a call; whether the store should hear of it, too."""
        self.learned.add(sample)
        if 0 <= now_us - self.told_us < TELL_EVERY_US:
            return False
        self.told_us = now_us
        return True


class Estimates:
    """Bounded; the pair of tenant and model that was made first is forgotten first. A tenant's first call to a model is
    estimated by what others' calls to it used. Only admitted calls are kept: callers may name any model."""

    def __init__(self) -> None:
        self._estimates: OrderedDict[tuple[str, str], Estimate] = OrderedDict()
        self._models: dict[str, Learned] = {}
        """What was learned of each model for the tenant that came last."""

    def of(self, tenant: str, model: str) -> Estimate:
        """What is known, to be kept by `hear` if it is new."""
        found = self._estimates.get((tenant, model))
        if found is None:
            others = self._models.get(model)
            found = Estimate(tenant, model, Learned() if others is None else others.lightly())
        return found

    def hear(self, estimate: Estimate, told: Learned | None, now_us: int) -> None:
        """Keep what the store answered to `ask` with an admission; None: it knows nothing."""
        estimate.heard_us = now_us
        if told is not None:
            estimate.learned = told
        self._models[estimate.model] = estimate.learned
        self._estimates[estimate.tenant, estimate.model] = estimate
        if len(self._estimates) > CAPACITY:
            self._estimates.popitem(last=False)
