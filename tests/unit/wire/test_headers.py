"""Headers: what passes, and what callers learn about their limits."""

from __future__ import annotations

import pytest

from tollgate.domain.limits import (
    DAY_US,
    FOREVER_US,
    PERIOD_US,
    Admission,
    Budget,
    BudgetTake,
    Concurrency,
    Decision,
    Limit,
    Rate,
    RateTake,
    Scope,
    SlotTake,
    Status,
    Take,
    Unit,
    Window,
)
from tollgate.wire.errors import ApiError
from tollgate.wire.headers import duration, from_upstream, limit_type, rate_limit_headers, to_upstream, use_case
from tollgate.wire.refusals import refusal_error

NOW = 1_700_000_000_000_000
MIDNIGHT = (NOW // DAY_US + 1) * DAY_US


# -- what passes


def test_nothing_secret_goes_upstream() -> None:
    incoming = [
        (b"authorization", b"Bearer jwt"), (b"x-api-key", b"k"), (b"cookie", b"c"), (b"host", b"h"),
        (b"x-forwarded-for", b"1.2.3.4"), (b"forwarded", b"for=1"), (b"via", b"v"), (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"), (b"te", b"trailers"), (b"x-amzn-request-context", b"{}"),
        (b"x-tollgate-use-case", b"u"), (b"openai-organization", b"o"), (b"openai-project", b"p"),
        (b"openai-beta", b"x"), (b"idempotency-key", b"i"), (b"user-agent", b"sdk"), (b"accept-encoding", b"gzip"),
        (b"content-length", b"5"), (b"content-type", b"text/plain"), (b"accept", b"text/event-stream"),
        (b"anthropic-version", b"2024-01-01"), (b"anthropic-beta", b"x"),
    ]  # fmt: skip
    base = [
        (b"content-type", b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"accept", b"text/event-stream"),
    ]
    assert to_upstream(incoming, "openai") == base
    assert to_upstream(incoming, "anthropic") == [*base, (b"anthropic-version", b"2024-01-01")]
    assert dict(to_upstream([], "anthropic"))[b"anthropic-version"] == b"2023-06-01"


def test_betas_pass_by_name() -> None:
    incoming = [
        (b"anthropic-beta", b"interleaved-thinking-2025-05-14, files-api-2025-04-14"),
        (b"anthropic-beta", b"computer-use-2025-01-24,context-1m-2025-08-07,,"),
    ]
    passed = dict(to_upstream(incoming, "anthropic"))
    assert passed[b"anthropic-beta"] == b"interleaved-thinking-2025-05-14,computer-use-2025-01-24"


@pytest.mark.parametrize("value", [b"a\r\nx-api-key: k", b"a\x00", b"\xff", b"a" * 2000])
def test_no_header_smuggles_another(value: bytes) -> None:
    assert dict(to_upstream([(b"accept", value)], "openai"))[b"accept"] == b"*/*"
    assert from_upstream([(b"openai-version", value)]) == []


def test_from_upstream() -> None:
    incoming = [
        (b"content-type", b"text/event-stream"), (b"x-request-id", b"req_1"), (b"request-id", b"req_2"),
        (b"set-cookie", b"c"), (b"openai-organization", b"o"), (b"x-ratelimit-remaining-requests", b"9"),
        (b"retry-after", b"5"), (b"content-length", b"5"), (b"server", b"s"), (b"openai-processing-ms", b"12"),
    ]  # fmt: skip
    assert from_upstream(incoming) == [
        (b"content-type", b"text/event-stream"),
        (b"x-upstream-request-id", b"req_1"),
        (b"x-upstream-request-id", b"req_2"),
        (b"openai-processing-ms", b"12"),
    ]


def test_use_case() -> None:
    assert use_case(None) == use_case(b"") == ""
    assert use_case(b"support.bot-2_x") == "support.bot-2_x"
    assert use_case(b"a" * 64) == "a" * 64
    for bad in (b"a" * 65, b"a b", b"a/b", b"\xe4", b"a\n", b"{a}"):
        with pytest.raises(ApiError) as caught:
            use_case(bad)
        assert caught.value.status == 400


# -- limits


def rate(scope: Scope, unit: Unit, amount: int, per: str = "minute", burst: int = 0) -> Rate:
    return Rate(scope, unit, amount, PERIOD_US[per], burst or amount, f"{scope}.{unit}.{per}")


def budget(unit: Unit, amount: int, window: Window = Window.DAY, scope: Scope = Scope.USER) -> Budget:
    return Budget(scope, unit, amount, window, f"{scope}.{unit}.{window}")


def take(limit: Limit, cost: int = 1, floor: int | None = None) -> Take:
    least = cost if floor is None else floor
    if isinstance(limit, Rate):
        return RateTake("s", "k", limit, cost, least)
    if isinstance(limit, Budget):
        _, start, end = limit.window.bounds(NOW)
        return BudgetTake("s", "k", limit, cost, least, "l", start, end)
    return SlotTake("s", "k", limit)


def decided(
    *pairs: tuple[Take, int], local: bool = False, status: Status = Status.REFUSED
) -> tuple[Admission, Decision]:
    """Each take with what the store saw: µs of TAT from now, committed units, or slots."""
    values = [NOW + value if isinstance(taken, RateTake) else value for taken, value in pairs]
    return Admission("i", [taken for taken, _ in pairs], 60), Decision(status, NOW, values, local=local)


def test_rate_limit_headers() -> None:
    second = 1_000_000
    found = rate_limit_headers(
        *decided(
            (take(rate(Scope.IP, Unit.REQUESTS, 100)), second),
            (take(rate(Scope.USER, Unit.REQUESTS, 10, burst=20)), 90 * second),
            (take(rate(Scope.USER, Unit.TOKENS, 60_000)), 20_500),
            (take(rate(Scope.GLOBAL, Unit.REQUESTS, 5, "second")), second),
            (take(budget(Unit.TOKENS, 100)), 99),
            (take(Concurrency(Scope.TENANT, 5, "tenant.slots")), 1),
            status=Status.ADMITTED,
        )
    )
    assert found == [
        (b"x-ratelimit-limit-requests", b"20"),
        (b"x-ratelimit-remaining-requests", b"5"),
        (b"x-ratelimit-reset-requests", b"1m30s"),
        (b"x-ratelimit-limit-tokens", b"60000"),
        (b"x-ratelimit-remaining-tokens", b"59979"),
        (b"x-ratelimit-reset-tokens", b"21ms"),
        (
            b"ratelimit-policy",
            b'"ip.requests.minute";q=100;w=60, "user.requests.minute";q=10;w=60, '
            b'"user.tokens.minute";q=60000;w=60;qu="tokens"',
        ),
        (
            b"ratelimit",
            b'"ip.requests.minute";r=98;t=1, "user.requests.minute";r=5;t=90, "user.tokens.minute";r=59979;t=1',
        ),
    ]


def test_no_rates_no_headers() -> None:
    assert rate_limit_headers(*decided((take(budget(Unit.TOKENS, 100)), 5))) == []
    assert rate_limit_headers(Admission("i", [], 1), Decision(Status.ADMITTED, NOW, [])) == []


def test_names_cannot_end_their_quotes() -> None:
    odd = Rate(Scope.USER, Unit.REQUESTS, 1, 1_000_000, 1, 'a"b\\c\r\nü')
    headers = dict(rate_limit_headers(*decided((take(odd), 0))))
    assert headers[b"ratelimit-policy"] == b'"a\\"b\\\\c???";q=1;w=1'


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (-1, "0s"), (0, "0s"), (1, "1ms"), (20_000, "20ms"), (1_000_000, "1s"), (1_500_000, "1.5s"),
        (8_640_000, "8.64s"), (360_000_000, "6m0s"), (86_400_000_000, "24h0m0s"), (3_661_001_000, "1h1m1.001s"),
    ],
)  # fmt: skip
def test_duration(us: int, text: str) -> None:
    assert duration(us) == text


def test_limit_type() -> None:
    assert [limit_type(scope, local=False) for scope in Scope] == ["IP", "User", "Key", "Team", "Tenant", "Global"]
    assert limit_type(Scope.USER, local=True) == "Local-User"


# -- refusals


def test_a_rate_says_when() -> None:
    limit = rate(Scope.USER, Unit.REQUESTS, 10)
    error = refusal_error(*decided((take(limit), 60_000_000), local=True))
    assert (error.status, error.code, error.type) == (429, "rate_limit_exceeded", "requests")
    assert error.headers.items() >= {"retry-after": "6", "x-ratelimit-type": "Local-User"}.items()
    assert error.headers["x-ratelimit-remaining-requests"] == "0", "a refusal says where the caller stands, too"
    assert "10 requests per minute" in error.message
    assert "6s" in error.message


def test_a_slot_says_soon() -> None:
    error = refusal_error(*decided((take(Concurrency(Scope.TENANT, 5, "c")), 5)))
    assert (error.status, error.headers) == (429, {"retry-after": "1", "x-ratelimit-type": "Tenant"})


def test_a_budget_says_when_it_resets_and_that_calls_in_flight_may_free_it_sooner() -> None:
    """What the store tells is spent and held together: nobody may claim that the window's end is needed."""
    error = refusal_error(*decided((take(budget(Unit.REQUESTS, 100)), 100)))
    assert (error.status, error.code) == (402, "insufficient_quota")
    assert error.headers == {"x-should-retry": "false", "x-ratelimit-type": "User"}
    assert "100 requests per day, 0 requests left. It resets at 2023-11-15T00:00:00Z; calls in" in error.message


def test_credit_that_is_used_up_is_told_before_a_day_that_ends() -> None:
    """Whoever waited for midnight would be refused again."""
    day = take(budget(Unit.TOKENS, 100)), 100
    life = take(budget(Unit.MICROUSD, 1_000, Window.LIFE, Scope.TENANT)), 1_000
    rate_limit = take(rate(Scope.USER, Unit.REQUESTS, 10)), 120_000_000
    for pairs in ((day, life), (life, day), (rate_limit, day, life)):
        error = refusal_error(*decided(*pairs))
        assert (error.status, error.rule) == (402, "tenant.microusd.life")
        assert error.headers["x-ratelimit-type"] == "Tenant"
        assert "$0.001 in all, $0 left. It does not reset" in error.message


def test_money_and_life() -> None:
    limit = budget(Unit.MICROUSD, 25_500_000, Window.LIFE, Scope.TENANT)
    error = refusal_error(*decided((take(limit, 600_000), 25_000_000)))
    assert error.status == 402
    assert "$25.5 in all, $0.5 left. It does not reset; calls in flight may free some of it, or it has" in error.message
    beyond = refusal_error(*decided((take(limit, 26_000_000), 25_000_000)))
    assert "It does not reset; it has to be topped up." in beyond.message
    assert take(limit).end_us == FOREVER_US  # type: ignore[union-attr]  # a budget


def test_what_would_fit_now() -> None:
    def largest(limit: Limit, amount: int) -> int:
        assert limit.unit is Unit.TOKENS
        return max(0, amount - 20)

    refused = decided((take(budget(Unit.TOKENS, 1000), 500), 600))
    error = refusal_error(*refused, param="max_tokens", largest=largest)
    assert error.status == 402
    assert "A max_tokens of up to 380 would fit now." in error.message
    assert "would fit" not in refusal_error(*refused).message
    # every limit has to have room for it, also those that would admit the request as it is
    tighter = rate(Scope.TENANT, Unit.TOKENS, 100)
    both = decided((take(budget(Unit.TOKENS, 1000), 500), 600), (take(tighter, 50), 0))
    assert (
        "A max_tokens of up to 80 would fit now." in refusal_error(*both, param="max_tokens", largest=largest).message
    )
    # alone, a container knows too little to say
    alone = decided((take(budget(Unit.TOKENS, 1000), 500), 600), local=True)
    assert "would fit" not in refusal_error(*alone, param="max_tokens", largest=largest).message


def test_nothing_would_fit_where_the_length_of_the_answer_is_not_the_matter() -> None:
    def largest(limit: Limit, amount: int) -> int | None:
        return amount if limit.unit is Unit.TOKENS else None

    tokens, requests = take(budget(Unit.TOKENS, 1000), 500), take(budget(Unit.REQUESTS, 4))
    for refused in (decided((tokens, 100), (requests, 4)), decided((tokens, 600), (requests, 4))):
        assert "would fit" not in refusal_error(*refused, param="max_tokens", largest=largest).message
    open_ = decided((tokens, 600), (requests, 3))
    assert "up to 400 would fit" in refusal_error(*open_, param="max_tokens", largest=largest).message


@pytest.mark.parametrize("limit", [budget(Unit.TOKENS, 1000), rate(Scope.USER, Unit.TOKENS, 1000)])
def test_what_can_never_fit(limit: Limit) -> None:
    refused = decided((take(limit, 5000), 0))
    error = refusal_error(*refused, param="max_tokens", largest=lambda _, amount: amount - 20)
    assert (error.status, error.code, error.param) == (400, "exceeds_plan_limit", "max_tokens")
    assert "The largest max_tokens that fits is 980." in error.message
    assert error.headers.items() >= {"x-should-retry": "false", "x-ratelimit-type": "User"}.items()
    assert "retry-after" not in error.headers
    assert "No max_tokens is small enough" in refusal_error(*refused, param="max_tokens", largest=lambda *_: 0).message
    assert "largest" not in refusal_error(*refused).message


def test_what_can_never_fit_names_the_narrowest_of_its_limits() -> None:
    """Whichever waits longest: what the error says would fit must not be refused by another limit."""
    limits = [budget(Unit.TOKENS, 3000), rate(Scope.USER, Unit.TOKENS, 1000), budget(Unit.TOKENS, 9000)]
    refused = decided(*((take(limit, 5000), 0) for limit in limits))
    error = refusal_error(*refused, param="max_tokens", largest=lambda _, amount: amount - 20)
    assert "1000 tokens per minute" in error.message
    assert "The largest max_tokens that fits is 980." in error.message


def test_a_plan_with_nothing_in_it_is_402() -> None:
    error = refusal_error(*decided((take(budget(Unit.TOKENS, 0), 5), 0)))
    assert error.status == 402
    assert "0 tokens per day" in error.message
