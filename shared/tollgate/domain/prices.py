"""What usage costs, in whole micro-dollars. No floats anywhere.

A price of one US dollar per million tokens is one micro-dollar per token. Prices carry up to six decimals, so they
are kept as integers of 10^-6 micro-dollars (pico-dollars) per token, and each request rounds up once.

Which price: the model's own, if the policy gives it one; else the row of the price table for the upstream that served
the call, the last one that had begun when the call was admitted; else the ceiling price. Nothing is free because
somebody forgot it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, fields
from decimal import Decimal
from typing import Literal, NamedTuple

from tollgate.domain.dataclass import dataclass
from tollgate.domain.keys import digest
from tollgate.domain.policy import Policy, PriceSpec, RouteSpec
from tollgate.domain.usage import Usage

PICO = 1_000_000
MAX_ID = 200
"""Characters of a tariff's id that are names; records take 256 in all."""


def _pico(dollars_per_million: Decimal) -> int:
    return int(dollars_per_million * PICO)


@dataclass(frozen=True, slots=True)
class Price:
    """Pico-dollars per token, by kind of token."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int
    cache_write_long: int
    audio_input: int
    audio_output: int
    dearest_input: int = field(init=False, repr=False, compare=False)
    dearest_output: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inputs = self.input, self.cached_input, self.cache_write, self.cache_write_long, self.audio_input
        object.__setattr__(self, "dearest_input", max(inputs))
        object.__setattr__(self, "dearest_output", max(self.output, self.reasoning, self.audio_output))

    @classmethod
    def of(cls, spec: PriceSpec) -> Price:
        """Kinds that the policy does not price cost as much as the kind that they are part of."""
        cache_write = spec.input if spec.cache_write is None else spec.cache_write
        return cls(
            input=_pico(spec.input),
            cached_input=_pico(spec.input if spec.cached_input is None else spec.cached_input),
            cache_write=_pico(cache_write),
            output=_pico(spec.output),
            reasoning=_pico(spec.output if spec.reasoning is None else spec.reasoning),
            cache_write_long=_pico(cache_write if spec.cache_write_long is None else spec.cache_write_long),
            audio_input=_pico(spec.input if spec.audio_input is None else spec.audio_input),
            audio_output=_pico(spec.output if spec.audio_output is None else spec.audio_output),
        )

    def or_dearer(self, other: Price) -> Price:
        """Of each kind of token the dearer price."""
        return Price(*[max(getattr(self, name), getattr(other, name)) for name in _KINDS])

    def estimate(self, input_tokens: int, output_tokens: int) -> int:
        """Micro-dollars to hold for a call: every token at its dearest kind, so that the hold covers the bill."""
        return -(-(input_tokens * self.dearest_input + output_tokens * self.dearest_output) // PICO)

    def exceeds(self, other: Price) -> bool:
        """Whether a hold at this price can be larger than one at the other."""
        return self.dearest_input > other.dearest_input or self.dearest_output > other.dearest_output

    def affordable(self, microusd: int, input_tokens: int) -> int:
        """The most output tokens for which `estimate` stays within `microusd`; 0 if not even the prompt does."""
        left = microusd * PICO - input_tokens * self.dearest_input
        if left < 0:
            return 0
        return left // self.dearest_output if self.dearest_output else 2**31 - 1

    def cost(self, usage: Usage) -> int:
        """Micro-dollars that `usage` costs. Cached, cache-write and audio tokens are parts of the input, reasoning and
        audio tokens of the output; a part larger than what is left of its whole (a corrupt answer, or sound that was
        cached as well) is cut to it."""
        parts = usage.cached_input_tokens or usage.cache_write_tokens or usage.audio_input_tokens
        if not (parts or usage.reasoning_tokens or usage.audio_output_tokens):  # as of most calls
            return -(-(usage.input_tokens * self.input + usage.output_tokens * self.output) // PICO)
        plain = usage.input_tokens
        plain -= (cached := min(usage.cached_input_tokens, plain))
        plain -= (written := min(usage.cache_write_tokens, plain))
        plain -= (heard := min(usage.audio_input_tokens, plain))
        long = min(usage.cache_write_long_tokens, written)
        said = usage.output_tokens
        said -= (reasoning := min(usage.reasoning_tokens, said))
        said -= (spoken := min(usage.audio_output_tokens, said))
        pico = (
            plain * self.input
            + cached * self.cached_input
            + (written - long) * self.cache_write
            + long * self.cache_write_long
            + heard * self.audio_input
            + said * self.output
            + reasoning * self.reasoning
            + spoken * self.audio_output
        )
        return -(-pico // PICO)


_KINDS = tuple(f.name for f in fields(Price) if f.init)


# -- which price ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tariff:
    """A price with the moment (µs) that it counts from, and where it is from."""

    id: str
    """What usage records call it, so that a bill can be explained: ``openai/gpt-4o@2026-11-01 3fa9c1`` with a digest
    of its figures (one that was edited is another); ``models.small ...`` for a model's own, ``ceiling ...``."""
    since_us: int
    price: Price
    priced: Literal["table", "ceiling"]


Schedule = tuple[Tariff, ...]
"""What one place to serve a model costs over time, oldest first; the first one counts from the beginning of time."""


def at(schedule: Schedule, moment_us: int) -> Tariff:
    """The tariff that counts at a moment."""
    for tariff in reversed(schedule):
        if tariff.since_us <= moment_us:
            return tariff
    return schedule[0]


def schedule_of(policy: Policy, model: str, route: RouteSpec) -> Schedule:
    """What a model costs where `route` serves it."""
    own = policy.models[model].price
    if own is not None:
        return (_tariff(f"models.{model}", 0, own),)
    rows = policy.prices.get(route.upstream, {}).get(route.model, ())
    found: list[Tariff] = []
    for row in rows:
        since = int(row.since.timestamp()) * 1_000_000 if row.since is not None else 0
        when = f"@{row.since.isoformat().removesuffix('T00:00:00+00:00')}" if row.since is not None else ""
        found.append(_tariff(f"{route.upstream}/{route.model}"[:MAX_ID] + when, max(since, 0), row))
    found.sort(key=lambda tariff: tariff.since_us)
    if not found or found[0].since_us > 0:
        found.insert(0, _tariff("ceiling", 0, policy.ceiling_price, "ceiling"))
    return tuple(found)


def _tariff(name: str, since_us: int, spec: PriceSpec, priced: Literal["table", "ceiling"] = "table") -> Tariff:
    price = Price.of(spec)
    figures = digest("/".join(str(getattr(price, kind)) for kind in _KINDS))
    return Tariff(f"{name} {figures[:6]}", since_us, price, priced)


class Tariffs:
    """What one model costs, wherever it is served."""

    __slots__ = ("_first", "_schedules")

    def __init__(self, policy: Policy, model: str) -> None:
        routes = policy.models[model].route
        self._schedules = {(route.upstream, route.model): schedule_of(policy, model, route) for route in routes}
        self._first = next(iter(self._schedules.values()))

    def of(self, upstream: str, model: str, admitted_us: int) -> Tariff:
        """What a call costs that was admitted then, and served there."""
        return at(self._schedules.get((upstream, model), self._first), admitted_us)

    def dearest(self, now_us: int) -> Price:
        """To hold for a call now: it may be served anywhere."""
        prices = [at(schedule, now_us).price for schedule in self._schedules.values()]
        found = prices[0]
        for price in prices[1:]:
            found = found.or_dearer(price)
        return found

    def changes_us(self) -> list[int]:
        """When a price changes: the moments (µs) that its tariffs count from."""
        return [tariff.since_us for schedule in self._schedules.values() for tariff in schedule]


class Place(NamedTuple):
    """Where a model is served, with what that costs."""

    model: str
    route: RouteSpec
    schedule: Schedule


def places(policy: Policy) -> Iterator[Place]:
    """Every place where a model of the policy is served."""
    for name, spec in policy.models.items():
        for route in spec.route:
            yield Place(name, route, schedule_of(policy, name, route))


def unpriced(policy: Policy, now_us: int) -> list[Place]:
    """Where models are served at the ceiling price now, because the policy has no other."""
    return [place for place in places(policy) if at(place.schedule, now_us).priced == "ceiling"]
