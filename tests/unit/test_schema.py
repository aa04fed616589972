"""The schema's reader: whatever data comes, it is read as it was written or refused with its path."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.domain.limits import Scope
from tollgate.domain.policy import BudgetSpec, LimitOverride, LimitSpec, PlanSpec, Policy, TenantRecord, TenantSpec
from tollgate.domain.policy_document import Document, to_json
from tollgate.domain.policy_paths import render
from tollgate.domain.schema import Spec, plain, read


def problems(spec: type[Spec], value: Any) -> list[str]:
    found, wrong = read(spec, Document(value))
    assert (found is None) == bool(wrong)
    return [f"{render(problem.path)}: {problem.message}" for problem in wrong]


def good(spec: type[Spec], value: Any) -> Any:
    found, wrong = read(spec, Document(value))
    assert wrong == []
    return found


# -- specs -----------------------------------------------------------------------------------------------------------


def test_what_was_given_is_told_from_what_is_the_default() -> None:
    given = good(TenantSpec, {"plan": "free", "limits": []})
    assert (given.limits, given.budgets) == ((), ())
    assert plain(given) == {"plan": "free", "limits": []}
    assert given == TenantSpec(plan="free")
    assert plain(given.replace(budgets=())) == {"plan": "free", "limits": [], "budgets": []}


def test_a_spec_is_frozen_and_knows_its_names() -> None:
    spec = LimitSpec(requests=5, per="minute")
    with pytest.raises(AttributeError, match="frozen"):
        spec.requests = 6  # type: ignore[misc]  # that is the test
    with pytest.raises(TypeError, match="has no reqests"):
        spec.replace(reqests=6)
    assert repr(spec) == "LimitSpec(requests=5, per='minute')"


def test_a_spec_equals_its_like_only() -> None:
    limit = {"requests": 5, "per": "day", "scope": "user"}
    assert good(LimitSpec, limit) == good(LimitSpec, {**limit, "burst": None})
    assert good(LimitSpec, limit) != good(LimitOverride, limit)
    assert good(LimitSpec, limit) != good(LimitSpec, {**limit, "requests": 6})


def test_names_of_python_are_not_the_documents() -> None:
    assert Policy.FIELDS.count("everyone") == 1
    assert list(plain(good(Policy, {"version": 1, "global": {"limits": []}}))) == ["version", "global"]
    assert problems(Policy, {"version": 1, "everyone": {}}) == ["everyone: is not known"]


# -- what tables hold ------------------------------------------------------------------------------------------------


def test_numbers_of_tables_are_numbers() -> None:
    assert good(LimitSpec, {"requests": Decimal("1E+2"), "per": "day"}).requests == 100
    assert good(BudgetSpec, {"scope": "user", "usd": Decimal("0.10"), "per": "day"}).amount == 100_000
    assert good(BudgetSpec, {"scope": "user", "usd": 0.1, "per": "day", "alert_at": [Decimal("0.5")]}).alert_at == (
        0.5,
    )
    assert problems(LimitSpec, {"requests": Decimal("1.5"), "per": "day"}) == [
        "requests: expected a whole number of at least 1, found 1.5"
    ]


def test_sets_are_lists() -> None:
    assert good(PlanSpec, {"models": {"small", "large"}}).models == ("large", "small")


def test_bytes_are_nothing() -> None:
    assert problems(PlanSpec, {"models": [b"small"]}) == [
        "models[0]: expected a name of letters, digits, '.', '_', '-', found b'small'"
    ]


@pytest.mark.parametrize("usd", ["25", "0.10", 25, 25.0, Decimal(25), 0])
def test_money(usd: object) -> None:
    """Quoted, too: some tools know no decimals."""
    assert good(BudgetSpec, {"scope": "user", "usd": usd, "per": "day"}).usd == Decimal(str(usd))


@pytest.mark.parametrize("usd", ["1e3", "-1", "", " 1", "NaN", "١", True, -1, 1e-7, float("nan"), float("inf"), 10**400,
                                 Decimal("Infinity"), Decimal("1E-400"), [1]])  # fmt: skip
def test_no_money(usd: object) -> None:
    (found,) = problems(BudgetSpec, {"scope": "user", "usd": usd, "per": "day"})
    assert found.startswith("usd: expected a number")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-12-01", datetime(2026, 12, 1, tzinfo=UTC)),
        ("2026-12-01T10:00:00", datetime(2026, 12, 1, 10, tzinfo=UTC)),
        ("2026-12-01 10:00:00z", datetime(2026, 12, 1, 10, tzinfo=UTC)),
        ("2026-12-01T10:00:00+02:00", datetime(2026, 12, 1, 8, tzinfo=UTC)),
    ],
)
def test_moments(written: str, meant: datetime) -> None:
    override = {"scope": "user", "requests": 1, "per": "day"}
    assert good(LimitOverride, {**override, "until": written}).until == meant


@pytest.mark.parametrize("written", ["2026-W49-2", "20261201", "2026-12-01T25:00", "2026-13-01", "2026-12-01x", 1, ""])
def test_no_moments(written: object) -> None:
    (found,) = problems(LimitOverride, {"requests": 1, "per": "day", "until": written})
    assert found.startswith("until: expected a moment such as 2026-12-01T00:00:00Z")


@pytest.mark.parametrize("seconds", [True, 0, -1, "5", float("nan"), float("inf"), 10**400, Decimal("1E+400")])
def test_no_durations(seconds: object) -> None:
    upstream = {"api": "bedrock", "region": "eu-central-1", "timeouts": {"total": seconds}}
    (found,) = problems(Policy, {"version": 1, "upstreams": {"u": upstream}})
    assert found.startswith("upstreams.u.timeouts.total: expected a number")


def test_text_that_no_wire_could_carry() -> None:
    route = {"upstream": "u", "model": "\ud800"}
    (found,) = problems(Policy, {"version": 1, "models": {"m": {"route": [route]}}})
    assert found.startswith("models.m.route[0].model: expected text without half characters")


# -- anything at all -------------------------------------------------------------------------------------------------

WORDS = sorted({name for spec in (Policy, PlanSpec, TenantRecord, LimitOverride, BudgetSpec) for name in spec.FIELDS})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.text(max_size=5)
    | st.binary(max_size=3)
    | st.sampled_from([*WORDS, *Scope, "free", "2026-12-01", "life"])
    | st.frozensets(st.text(max_size=3), max_size=2)
)
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*WORDS, "global"]) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(DATA)
def test_any_data_is_read_or_refused(value: object) -> None:
    for spec in (Policy, TenantRecord, LimitOverride, BudgetSpec):
        problems(spec, value)


LIMITS = st.fixed_dictionaries(
    {"scope": st.sampled_from(["user", "key", "team", "tenant"]), "requests": st.integers(1, 10**5)},
    optional={"burst": st.integers(1, 100), "until": st.datetimes(timezones=st.just(UTC)).map(to_json)},
).map(lambda limit: {**limit, "per": "minute"})


@given(st.lists(LIMITS, max_size=3))
def test_what_was_read_says_the_same(limits: list[dict[str, Any]]) -> None:
    record = good(TenantRecord, {"tenant": "acme", "plan": "free", "limits": limits})
    assert good(TenantRecord, plain(record)) == record
