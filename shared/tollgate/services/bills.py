"""What a call cost: what was held is settled, and the usage recorded, once, on whatever way the call ends.

Records are written as the mappings that `domain/records.py` reads: made as its classes first, a call's two would cost
three times as much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any

from tollgate.domain.dataclass import dataclass
from tollgate.domain.estimates import LEAST_PROMPT, Sample
from tollgate.domain.identity import Identity
from tollgate.domain.limits import hold_expiry_us
from tollgate.domain.policy import RouteSpec
from tollgate.domain.prices import Tariff
from tollgate.domain.records import Outcome, UsageClose, UsageOpen, counts_as_request
from tollgate.domain.usage import Usage
from tollgate.ports import UsageLog
from tollgate.services.admit import Admitter, Grant
from tollgate.services.estimates import Estimate
from tollgate.services.exchange import Exchange
from tollgate.services.unpriced import Unpriced
from tollgate.wire.body import Body
from tollgate.wire.routes import Call, Route
from tollgate.wire.usage import UsageReader


@dataclass(slots=True)
class Job:
    """One admitted call on its way."""

    exchange: Exchange
    who: Identity
    route: Route
    call: Call
    body: Body
    grant: Grant
    likely: Estimate
    label: str
    started_us: int
    served: RouteSpec = field(init=False)
    """Where it was sent last; from its opening on, where it is sent first."""
    tariff: Tariff = field(init=False)
    """What it costs there."""
    first_byte_us: int = 0
    also: Grant | None = None
    """What was taken from a further upstream's limits, after the first could not serve."""
    reader: UsageReader | None = None
    common: dict[str, Any] = field(init=False)
    """What its records have in common, once it is open; they begin with it."""
    closed: bool = False
    """Whether it is settled and recorded; exactly once, on every way out."""


class Bills:
    """Writes the records of calls, and settles them. One per gateway."""

    def __init__(self, admitter: Admitter, usage_log: UsageLog, clock: Callable[[], int]) -> None:
        self._admitter = admitter
        self._log = usage_log
        self._clock = clock
        self._unpriced = Unpriced()

    def send(self, job: Job, route: RouteSpec) -> None:
        """The call goes there now."""
        job.served = route
        tariffs = job.grant.entitlement.terms.tariffs
        job.tariff = tariffs.of(route.upstream, route.model, job.grant.decision.now_us)

    def open(self, job: Job) -> None:
        """Record that a call is about to be made."""
        grant, request, who = job.grant, job.grant.request, job.who
        first = grant.entitlement.routes[0]
        admitted_us = grant.decision.now_us
        self.send(job, first)
        degraded = request.degraded
        job.common = {
            **UsageOpen.HEAD,
            "id": request.id,
            "ts_us": admitted_us,
            "tenant": who.tenant,
            "user": who.user,
            "team": who.team,
            "key": who.key,
            "plan": grant.entitlement.record.plan,
            "model": request.model,
            "route": job.route.path,
            "degraded_from": degraded.replaced if degraded is not None else "",
            "use_case": job.label,
        }
        self._log.write(
            {
                **job.common,
                "upstream": first.upstream,
                "upstream_model": first.model,
                "input_tokens": request.input_tokens,
                "output_tokens": grant.cost.tokens - request.input_tokens,
                "cost_microusd": grant.cost.microusd,
                "price": job.tariff.id,
                "priced": job.tariff.priced,
                "expires_us": hold_expiry_us(admitted_us, grant.admission.expires_us),
            }
        )

    async def close(self, job: Job, outcome: Outcome, status: int, usage: Usage | None) -> None:
        """Settle what was held and record what was used. `usage` None: nothing of an answer was seen, nothing is
        charged."""
        job.closed = True
        grant, served, tariff, now = job.grant, job.served, job.tariff, self._clock()
        known = usage if usage is not None else Usage(estimated=True)
        cost, tokens = tariff.price.cost(known), known.total_tokens
        if tariff.priced == "ceiling" and cost:
            self._unpriced.tell(grant.request.model, served.upstream, served.model, now)
        counts = counts_as_request(outcome, status, tokens)
        settlement = grant.settlement(tokens, cost, counts=counts, served=served.upstream)
        footprint = grant.takes.footprint
        # else it says nothing of the model
        if outcome == "ok" and not known.estimated and grant.request.degraded is None:
            sample = sample_of(job.call, known)
            if sample is not None and job.likely.learn(sample, now):
                settlement.sample, settlement.learn = sample, job.likely.key
        record = {
            **job.common,
            **UsageClose.HEAD,
            "upstream": served.upstream,
            "upstream_model": served.model,
            "input_tokens": known.input_tokens,
            "output_tokens": known.output_tokens,
            "cost_microusd": cost,
            "price": tariff.id,
            "priced": tariff.priced,
            "outcome": outcome,
            "status": status,
            "cached_input_tokens": known.cached_input_tokens,
            "cache_write_tokens": known.cache_write_tokens,
            "cache_write_long_tokens": known.cache_write_long_tokens,
            "audio_input_tokens": known.audio_input_tokens,
            "reasoning_tokens": known.reasoning_tokens,
            "audio_output_tokens": known.audio_output_tokens,
            "estimated": known.estimated,
            "latency_ms": (now - job.started_us) // 1000 if now > job.started_us else 0,
            "first_byte_ms": job.first_byte_us // 1000 if job.first_byte_us > 0 else 0,
            "store": grant.decision.store,
            "settle": list(zip(footprint.kinds, footprint.keys, settlement.used, strict=True)),
            "rates_us": settlement.rates_us,
            "budget_models": footprint.models,
        }
        try:
            await self._admitter.settle(settlement)
            await self._settle_also(job, tokens, cost, counts=counts)
        finally:  # also where this is cancelled: metering settles what was not
            self._log.write(record)

    async def give_back(self, job: Job) -> None:
        """Return what a further upstream's limits gave, before the next one is asked."""
        await self._settle_also(job, 0, 0, counts=False)
        job.also = None

    async def _settle_also(self, job: Job, tokens: int, microusd: int, *, counts: bool) -> None:
        if job.also is not None and job.also.admission.takes:
            await self._admitter.settle(job.also.settlement(tokens, microusd, counts=counts))


def sample_of(call: Call, usage: Usage) -> Sample | None:
    """What this call teaches: of its prompt, if that is a long text alone; of its answers, if nobody limited them."""
    text = usage.input_tokens if not call.prompt_tokens and call.prompt_bytes >= LEAST_PROMPT else 0
    answer = -(-usage.output_tokens // call.answers) if call.max_output is None else 0
    return Sample(call.prompt_bytes, text, answer) if text or answer else None
