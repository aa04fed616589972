"""The policy: plans, models, upstreams and global limits, as operators write them; and a tenant's record.

This is the schema only. Reading YAML, naming lines and applying environment overrides is `policy_file`'s work;
turning it into limits is `terms`'s. Money is US dollars here (per million tokens for prices) and becomes integers
the moment it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Literal
from urllib.parse import urlsplit

from tollgate.domain.data_rules import DataRules, Region
from tollgate.domain.limits import PERIOD_US, FailureMode, Scope, Unit, Window
from tollgate.domain.schema import Count, Spec
from tollgate.domain.schema_kinds import Dollars, Positive, Text, Whole
from tollgate.domain.until import disables, lasts, moment_us

Name = Annotated[str, Text(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")]
"""Plans, models and upstreams: the alphabet is safe in URLs, headers and environment variables."""
TenantName = Annotated[str, Text(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")]
ProviderModel = Annotated[str, Text(least=1, most=256)]
"""What an upstream calls a model."""
Amount = Annotated[int, Whole(1, 10**12)]
Allowance = Annotated[int, Whole(0, 10**12)]
Version = Annotated[int, Whole(0, 10**38)]
Money = Annotated[Decimal, Dollars(10**6)]
Sum = Annotated[Decimal, Dollars(10**9 - 1)]
"""Of many payments."""
Seconds = Annotated[float, Positive(900)]
Share = Annotated[float, Positive(10)]

SPEAKS: Mapping[str, Literal["openai", "anthropic", "converse"]] = MappingProxyType(
    {"openai": "openai", "bedrock": "openai", "anthropic": "anthropic", "converse": "converse"}
)
"""The shapes that each kind of upstream speaks. Requests are passed on, never translated."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_DISABLED_USERS = 1000
"""Of one tenant: some 80 KB of its item, of which DynamoDB takes 400."""
LEAST_REFILL = 0.99
"""Of a rate of requests: how much of what it says it refills at least."""
MAX_BURST_US = 10 * 365 * 86_400 * 10**6
"""No bucket may be deeper than ten years: TATs stay far below 2^53 µs."""


def _exactly_one(spec: Spec, names: tuple[str, ...]) -> str:
    given = [name for name in names if getattr(spec, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}" + (f", not {' and '.join(given)}" if given else ""))
    return given[0]


def _check_refill(amount: int, period_us: int) -> None:
    """A request refills in whole microseconds (`Rate.unit_us`). Raises ValueError where that would be felt."""
    if amount > period_us:
        raise ValueError("at most one request per microsecond can be counted")
    each_us = -(-period_us // amount)
    if period_us < each_us * amount * LEAST_REFILL:
        # the lowest that refills as slowly, and the lowest that refills a microsecond sooner
        below, above = -(-period_us // each_us), -(-period_us // (each_us - 1))
        raise ValueError(
            f"{amount} requests would refill as if they were {below}, because a request takes whole microseconds: "
            f"say {below} or {above}"
        )


class LimitSpec(Spec):
    """A rate (``requests`` or ``tokens`` per period) or a number of concurrent requests."""

    scope: Scope = Scope.GLOBAL
    requests: Amount | None = None
    tokens: Amount | None = None
    concurrent: Amount | None = None
    per: Literal["second", "minute", "hour", "day"] | None = None
    burst: Amount | None = None

    def check(self) -> None:
        kind = _exactly_one(self, ("requests", "tokens", "concurrent"))
        if kind == "concurrent":
            if self.per or self.burst:
                raise ValueError("concurrent takes neither per nor burst: it counts requests in flight")
        elif self.per is None:
            raise ValueError(f"{kind} needs per: second, minute, hour or day")
        else:
            if (self.burst or self.amount) * PERIOD_US[self.per] // self.amount > MAX_BURST_US:
                raise ValueError("burst is worth more than ten years of refill")
            if kind == "requests":
                _check_refill(self.amount, PERIOD_US[self.per])

    @property
    def unit(self) -> Unit:
        return Unit.REQUESTS if self.requests else Unit.TOKENS if self.tokens else Unit.SLOTS

    @property
    def amount(self) -> int:
        return self.requests or self.tokens or self.concurrent or 0

    @property
    def id(self) -> str:
        """What this limit is, apart from its amount: an override replaces the plan's limit of the same id."""
        return f"{self.scope}.{self.unit}" + (f".{self.per}" if self.per else "")


class BudgetSpec(Spec):
    """At most so many requests, tokens or US dollars per UTC day, UTC month, or for life (prepaid credit)."""

    scope: Scope = Scope.GLOBAL
    requests: Allowance | None = None
    tokens: Allowance | None = None
    usd: Money | None = None
    per: Window
    models: Annotated[tuple[Name, ...], Count(1)] | None = None
    """Of these only; None: of all. (None of them would be a budget that nobody meets.)"""
    alert_at: tuple[Share, ...] = (0.5, 0.8, 1.0)

    def check(self) -> None:
        _exactly_one(self, ("requests", "tokens", "usd"))
        if self.scope in (Scope.IP, Scope.GLOBAL):
            raise ValueError(f"a budget's scope is user, key, team or tenant, not {self.scope}")

    @property
    def unit(self) -> Unit:
        if self.usd is not None:
            return Unit.MICROUSD
        return Unit.REQUESTS if self.requests is not None else Unit.TOKENS

    @property
    def amount(self) -> int:
        if self.usd is not None:
            return int(self.usd * 1_000_000)
        return self.requests if self.requests is not None else self.tokens or 0

    @property
    def id(self) -> str:
        models = "." + "+".join(sorted(set(self.models))) if self.models else ""
        return f"{self.scope}.{self.unit}.{self.per}{models}"


class LimitOverride(LimitSpec):
    """A tenant's (or one of its users') own limit; until a moment, if it is a boost."""

    user: Annotated[str, Text(most=256)] | None = None
    until: datetime | None = None


class BudgetOverride(BudgetSpec):
    """A tenant's (or one of its users') own budget; until a moment, if it is a boost."""

    user: Annotated[str, Text(most=256)] | None = None
    until: datetime | None = None


def in_force(override: LimitOverride | BudgetOverride, user: str, now_us: int) -> bool:
    """Whether an override applies to this user now."""
    if override.user is not None and override.user != user:
        return False
    return lasts(override.until, now_us)


def changes_us(record: TenantRecord, user: str) -> list[int]:
    """When something dated of a tenant's record ends for this user, in µs since 1970: an override, or that the user may
    not call."""
    dated: list[LimitOverride | BudgetOverride | DisabledUser] = [
        *record.limits,
        *record.budgets,
        *record.disabled_users,
    ]
    return [moment_us(one.until) for one in dated if one.until is not None and one.user in (None, user)]


class Timeouts(Spec):
    """Seconds to connect, to the answer's first byte, between bytes, and in all."""

    connect: Seconds = 2
    first_byte: Seconds = 60
    idle: Seconds = 30
    total: Seconds = 300


def _shared(limit: LimitSpec) -> LimitSpec:
    if limit.scope is not Scope.GLOBAL:
        raise ValueError(f"a limit here is shared by everyone: scope must be global, not {limit.scope}")
    return limit


def _personal(limit: LimitSpec) -> LimitSpec:
    if limit.scope in (Scope.IP, Scope.GLOBAL):
        raise ValueError(f"a limit here has the scope user, key, team or tenant, not {limit.scope}")
    return limit


def _own(override: LimitOverride | BudgetOverride) -> LimitOverride | BudgetOverride:
    """One user's amount for a bucket that many share would change it for all of them."""
    if override.user is not None and override.scope is not Scope.USER:
        raise ValueError(f"an override for one user has the scope user, not {override.scope}")
    return override


def _common(limit: LimitSpec) -> LimitSpec:
    if limit.scope not in (Scope.IP, Scope.GLOBAL):
        raise ValueError(f"a global limit has the scope ip or global, not {limit.scope}")
    return limit


SharedLimit = Annotated[LimitSpec, _shared]
PersonalLimit = Annotated[LimitSpec, _personal]
CommonLimit = Annotated[LimitSpec, _common]


def _safe(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in url:
        raise ValueError("expected https://host[:port]/path, without user, query or fragment")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("expected printable ASCII without spaces")
    try:
        parts.port  # noqa: B018 - reading it validates it
    except ValueError:
        raise ValueError("the port is not a number from 1 to 65535") from None
    if url.rstrip("/").endswith("/chat/completions"):
        raise ValueError("base_url ends before /chat/completions")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ValueError("http:// is for loopback addresses only: elsewhere prompts and keys travel in clear")
    return url.rstrip("/")


class UpstreamSpec(Spec):
    """Where models live: the only hosts that are ever called.

    `base_url` ends before ``/chat/completions``. ``bedrock`` is Amazon Bedrock's OpenAI-compatible endpoint in
    `region`, and ``converse`` its own API; both are signed with the function's own role.
    """

    api: Literal["openai", "anthropic", "bedrock", "converse"]
    base_url: Annotated[str, _safe] | None = None
    secret: Annotated[str, Text(least=1, most=512)] | None = None
    region: Region | None = None
    """Where it computes, for tenants with rules about that."""
    phi: bool = False
    """Whether a contract with the provider covers protected health information."""
    no_content_logging: bool = False
    """Whether the provider has agreed to keep neither prompts nor answers of this account."""
    timeouts: Timeouts = Timeouts()
    limits: tuple[SharedLimit, ...] = ()

    def check(self) -> None:
        if self.is_bedrock:
            if not self.region:
                raise ValueError(f"a {self.api} upstream needs region")
            if self.secret:
                raise ValueError(
                    f"a {self.api} upstream takes no secret: calls are signed with the function's own role"
                )
        elif not self.base_url:
            raise ValueError(f"an {self.api} upstream needs base_url")
        elif not self.secret and urlsplit(self.base_url).hostname not in LOOPBACK:
            raise ValueError("needs secret, the name of the provider key in Secrets Manager")

    @property
    def is_bedrock(self) -> bool:
        return self.api in ("bedrock", "converse")

    @property
    def url(self) -> str:
        path = "/openai/v1" if self.api == "bedrock" else ""
        return self.base_url or f"https://bedrock-runtime.{self.region}.amazonaws.com{path}"


class RouteSpec(Spec):
    """One place that can serve a model; the first is used, the others when it cannot be reached."""

    upstream: Name
    model: ProviderModel
    region: Region | None = None
    """Where this model computes, if that is not the upstream's region."""


class PriceSpec(Spec):
    """US dollars per million tokens. What is not given costs as much as what it is a part of: `input` (cached, cache
    write, sound), `cache_write` (one that is kept for long) or `output` (reasoning, sound)."""

    input: Money
    output: Money = Decimal(0)
    cached_input: Money | None = None
    cache_write: Money | None = None
    cache_write_long: Money | None = None
    audio_input: Money | None = None
    reasoning: Money | None = None
    audio_output: Money | None = None


class DatedPrice(PriceSpec):
    """A row of the price table: what a provider takes for one of its models from a moment on (without one: always)."""

    ALIASES = MappingProxyType({"since": "from"})

    since: datetime | None = None


def _distinct(rows: tuple[DatedPrice, ...]) -> tuple[DatedPrice, ...]:
    if len({row.since for row in rows}) < len(rows):
        raise ValueError("two rows begin at the same moment")
    return rows


CEILING = PriceSpec(input=Decimal(150), output=Decimal(600))
"""What a model without a price is reckoned at: the dearest that a large provider has sold to everyone (OpenAI's o1-pro,
2025), so that whoever forgets a price hears of it from a budget, not from the provider's bill."""


class ModelSpec(Spec):
    """What callers may name.

    `class`: models of one class can stand in for each other, as far as they have what a request needs: `context` (the
    most tokens of prompt and answer) and `serves` (what they take besides plain text).
    """

    ALIASES = MappingProxyType({"class_": "class"})

    route: Annotated[tuple[RouteSpec, ...], Count(1, 16)]
    price: PriceSpec | None = None
    limits: tuple[SharedLimit, ...] = ()
    class_: Annotated[str, Text(r"[A-Za-z0-9._-]{1,64}")] | None = None
    context: Amount | None = None
    serves: tuple[Literal["tools", "media", "structured", "reasoning", "logprobs"], ...] = ()


class DegradeSpec(Spec):
    """What happens to a plan's calls once a budget of theirs is used beyond the share `at`: models are replaced by
    cheaper ones of their class, answers are cut short. The answer says so in a header."""

    at: Annotated[float, Positive(1)] = 0.8
    models: Mapping[Name, Name] = MappingProxyType({})
    max_output_tokens: Amount | None = None

    def check(self) -> None:
        if not self.models and self.max_output_tokens is None:
            raise ValueError("give models, max_output_tokens, or both")


class PlanSpec(Spec):
    """What a tenant has bought."""

    models: tuple[Name, ...]
    limits: tuple[PersonalLimit, ...] = ()
    budgets: tuple[BudgetSpec, ...] = ()
    degrade: DegradeSpec | None = None
    when_stores_fail: Literal["open", "closed"] = "closed"
    """When neither store answers: let through a bounded local share, or refuse with 503. Plans with a money budget
    are always closed."""
    redis_failure_mode: FailureMode | None = None
    """Who decides while Redis does not answer; instead of the policy's."""


class GlobalSpec(Spec):
    """Limits for everyone: per address (scope ip), and for all together (scope global)."""

    limits: tuple[CommonLimit, ...] = ()


class TeamSpec(Spec):
    """A part of a tenant, by the name that its callers' tokens give."""

    data: DataRules = DataRules()


class TenantSpec(Spec):
    """A tenant as the policy file names it."""

    plan: Name
    limits: tuple[Annotated[LimitOverride, _personal, _own], ...] = ()
    budgets: tuple[Annotated[BudgetOverride, _own], ...] = ()
    when_stores_fail: Literal["open", "closed"] | None = None
    """Instead of the plan's."""
    redis_failure_mode: FailureMode | None = None
    """Instead of the plan's."""
    data: DataRules = DataRules()
    teams: Mapping[Annotated[str, Text(least=1, most=256)], TeamSpec] = MappingProxyType({})

    def data_rules(self, team: str) -> tuple[DataRules, ...]:
        """The rules for callers of that team (empty: of none): the tenant's, and the team's own."""
        found = [self.data, self.teams[team].data] if team in self.teams else [self.data]
        return tuple([rules for rules in found if vars(rules)])


class CreditSpec(Spec):
    """Prepaid credit of a tenant, or of one of its users: the sum of its entries in the ledger (`domain/credit.py`),
    kept where admission finds it. Only `tollgate credit` changes it."""

    usd: Sum
    user: Annotated[str, Text(least=1, most=256)] | None = None
    used_before: Sum = Decimal(0)
    """What had been used when the first credit was added; it is not drawn from it."""


class DisabledUser(Spec):
    """A user whose calls are refused, whatever they hold: anybody's token, or an API key."""

    user: Annotated[str, Text(least=1, most=256)]
    """As tokens or API keys name them."""
    until: datetime | None = None
    """When it ends, and the entry may go: what a user held who is gone for good has expired by then."""


class TenantRecord(TenantSpec):
    """A tenant as it is now: an item of the tenants table. `version` grows with every change."""

    tenant: TenantName
    credit: tuple[CreditSpec, ...] = ()
    state: Literal["active", "suspended"] = "active"
    disabled_users: Annotated[tuple[DisabledUser, ...], Count(0, MAX_DISABLED_USERS)] = ()
    version: Version = 1

    def disables(self, user: str, now_us: int) -> bool:
        """Whether this user's calls are refused now."""
        return disables([(one.user, one.until) for one in self.disabled_users], (user,), now_us)


class Policy(Spec):
    """The whole policy. `revision` is set where it is published, and grows with every change; 0: a file's."""

    ALIASES = MappingProxyType({"everyone": "global"})

    version: Literal[1]
    revision: Version = 0
    upstreams: Mapping[Name, UpstreamSpec] = MappingProxyType({})
    models: Mapping[Name, ModelSpec] = MappingProxyType({})
    plans: Mapping[Name, PlanSpec] = MappingProxyType({})
    everyone: GlobalSpec = GlobalSpec()
    tenants: Mapping[TenantName, TenantSpec] = MappingProxyType({})
    prices: Mapping[Name, Mapping[ProviderModel, Annotated[tuple[DatedPrice, ...], Count(1, 64), _distinct]]] = (
        MappingProxyType({})
    )
    """The price table: of an upstream's models, by the names that it knows them by."""
    ceiling_price: PriceSpec = CEILING
    """Of whatever has no price."""
    redis_failure_mode: FailureMode | None = None
    """Of all plans and tenants that do not say otherwise. The environment's word comes before all of them."""

    def dangling(self) -> list[tuple[tuple[str | int, ...], str]]:
        """References to what does not exist: (path, what is wrong). Checked apart, so that all are found at once."""
        found: list[tuple[tuple[str | int, ...], str]] = []
        for name, model in self.models.items():
            for i, route in enumerate(model.route):
                if route.upstream not in self.upstreams:
                    found.append((("models", name, "route", i, "upstream"), f"there is no upstream {route.upstream!r}"))
        for name in self.prices:
            if name not in self.upstreams:
                found.append((("prices", name), f"there is no upstream {name!r}"))
        for name, plan in self.plans.items():
            for i, model_name in enumerate(plan.models):
                if model_name not in self.models:
                    found.append((("plans", name, "models", i), f"there is no model {model_name!r}"))
            for i, budget in enumerate(plan.budgets):
                for j, model_name in enumerate(budget.models or ()):
                    if model_name not in self.models:
                        found.append((("plans", name, "budgets", i, "models", j), f"there is no model {model_name!r}"))
            groups: tuple[tuple[str, Sequence[LimitSpec | BudgetSpec]], ...] = (
                ("limits", plan.limits),
                ("budgets", plan.budgets),
            )
            for kind, specs in groups:
                seen: set[str] = set()
                for i, spec in enumerate(specs):
                    if spec.id in seen:
                        found.append((("plans", name, kind, i), f"a second {spec.id}: keep the stricter one"))
                    seen.add(spec.id)
        for name, tenant in self.tenants.items():
            if tenant.plan not in self.plans:
                found.append((("tenants", name, "plan"), f"there is no plan {tenant.plan!r}"))
        return found
