"""The policy file: whatever is wrong with it is named by path and line, and nothing but `PolicyErrors` comes out."""

from __future__ import annotations

import asyncio
import os
import re
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tollgate.adapters.policy_file import FilePolicySource, PolicyErrors, fragment, load, parse
from tollgate.domain.policy_document import Problem
from tollgate.domain.policy_paths import render
from tollgate.domain.schema import plain

ROOT = Path(__file__).parents[2]

GOOD = """\
version: 1
upstreams:
  openai: {api: openai, base_url: "https://api.openai.com/v1", secret: tollgate/openai}
models:
  small: {route: [{upstream: openai, model: gpt-4o-mini}], price: {input: 0.15, output: 0.60}}
plans:
  free:
    models: [small]
    limits:
      - {scope: user, requests: 10, per: minute}
    budgets:
      - {scope: tenant, usd: 25, per: month}
global:
  limits:
    - {scope: ip, requests: 100, per: minute}
tenants:
  globex: {plan: free}
"""


def problems(text: str, environ: dict[str, str] | None = None) -> list[Problem]:
    with pytest.raises(PolicyErrors) as caught:
        parse(text, environ or {})
    assert caught.value.problems
    return list(caught.value.problems)


def outcome(text: str, environ: dict[str, str] | None = None) -> list[Problem]:
    """The mistakes, if there are any."""
    try:
        parse(text, environ or {})
    except PolicyErrors as errors:
        return list(errors.problems)
    return []


def test_what_the_policy_holds_as_a_comment_is_right_without_its_comment_signs() -> None:
    """Providers and a model that the README has its readers switch on."""
    text = (ROOT / "policy.yaml").read_text()
    text, names = re.subn(r"(?m)^  # (anthropic|bedrock|converse|claude):", r"  \1:", text)
    text, fields = re.subn(r"(?m)^  #   (route|price):", r"    \1:", text)
    assert (names, fields) == (4, 2)
    policy = parse(text.replace("models: [small, large, embed]", "models: [small, large, embed, claude]"), {})
    assert policy.upstreams.keys() == {"openai", "anthropic", "bedrock", "converse"}
    assert "claude" in policy.plans["pro"].models
    assert policy.upstreams[policy.models["claude"].route[0].upstream].api == "anthropic"


def with_line(number: int, line: str) -> str:
    lines = GOOD.splitlines()
    lines[number - 1] = line
    return "\n".join(lines) + "\n"


def test_the_demo_policy_is_right() -> None:
    policy = load(ROOT / "policy.yaml", {})
    assert set(policy.plans) == {"free", "pro", "enterprise"}
    assert policy.models["small"].price is not None
    assert policy.models["small"].price.output == Decimal("0.60")


def test_everything_but_the_version_may_be_absent() -> None:
    policy = parse("version: 1", {})
    assert (policy.plans, policy.everyone.limits, policy.revision) == ({}, (), 0)


BROKEN: list[tuple[int, str, str, int, str]] = [
    # the line to replace, with what, the path, the problem's line, part of its message
    (1, "version: 2", "version", 1, "expected 1, found 2"),
    (1, "version: '1'", "version", 1, "expected 1, found '1'"),
    (1, "# version: 1", "version", 2, "is missing"),
    (1, "version: 1\nrevision: 7", "revision", 2, "leave it out"),
    (1, "version: 1\nplan: {}", "plan", 2, "is not known (did you mean plans?)"),
    (1, "version: 1\neveryone: {}", "everyone", 2, "is not known (did you mean global?)"),
    (1, "version: 1\nredis_failure_mode: shut", "redis_failure_mode", 2, "expected fallback, open or closed"),
    (3, "  openai: {api: opnai, base_url: 'https://a.b/v1', secret: s}",
     "upstreams.openai.api", 3, "did you mean openai"),
    (3, "  openai: {api: openai, secret: s}", "upstreams.openai", 3, "needs base_url"),
    (3, "  openai: {api: openai, base_url: 'https://a.b/v1'}", "upstreams.openai", 3, "needs secret"),
    (3, "  openai: {api: openai, base_url: 'http://a.b/v1', secret: s}", "upstreams.openai.base_url", 3, "loopback"),
    (3, "  openai: {api: openai, base_url: 'ftp://a.b', secret: s}",
     "upstreams.openai.base_url", 3, "expected https"),
    (3, "  openai: {api: openai, base_url: 5, secret: s}", "upstreams.openai.base_url", 3, "expected text, found 5"),
    (3, "  openai: {api: bedrock}", "upstreams.openai", 3, "needs region"),
    (3, "  openai: {api: bedrock, region: eu-central-1, secret: s}", "upstreams.openai", 3, "takes no secret"),
    (3, "  openai: {api: bedrock, region: Mars!}", "upstreams.openai.region", 3, "expected a name"),
    (3, "  openai: {api: bedrock, region: r1, timeouts: {total: 0}}",
     "upstreams.openai.timeouts.total", 3, "above 0"),
    (3, "  openai: {api: bedrock, region: r1, timeouts: {idle: 901}}",
     "upstreams.openai.timeouts.idle", 3, "at most 900"),
    (3, "  openai: {api: bedrock, region: r1, limits: [{scope: user, requests: 1, per: day}]}",
     "upstreams.openai.limits[0]", 3, "scope must be global"),
    (5, "  small: {route: []}", "models.small.route", 5, "at least 1 entry"),
    (5, "  small: {}", "models.small.route", 5, "is missing"),
    (5, "  small: {route: [{upstream: opnai, model: m}], price: {input: 1}}",
     "models.small.route[0].upstream", 5, "did you mean openai?"),
    (5, "  small: {route: [{upstream: openai, model: ''}]}",
     "models.small.route[0].model", 5, "expected text, found ''"),
    (5, "  small: {route: [{upstream: openai, model: m}], price: {input: -1}}",
     "models.small.price.input", 5, "0 or more"),
    (5, "  small: {route: [{upstream: openai, model: m}], price: {input: 0.1234567}}", "models.small.price.input", 5,
     "six decimals"),
    (5, "  small: {route: [{upstream: openai, model: m}], price: {output: 1}}",
     "models.small.price.input", 5, "missing"),
    (5, "  small: {route: [{upstream: openai, model: m}], price: {input: .nan}}",
     "models.small.price.input", 5, "nan"),
    (5, "  small: {route: [{upstream: openai, model: m}, {upstream: openai, model: m}], price: {input: 1}}",
     "models.small.route[1]", 5, "the same route again"),
    (5, "  bad name!: {route: [{upstream: openai, model: m}], price: {input: 1}}\n"
     "  small: {route: [{upstream: openai, model: m}], price: {input: 1}}",
     'models["bad name!"]', 5, "cannot be a name"),
    (8, "    modls: [small]", "plans.free.modls", 8, "did you mean models?"),
    (8, "    models: small", "plans.free.models", 8, "expected a list, found 'small'"),
    (8, "    models: [smal]", "plans.free.models[0]", 8, "there is no model 'smal' (did you mean small?)"),
    (8, "    models: [5]", "plans.free.models[0]", 8, "expected a name of letters, digits"),
    (8, "    models: [small]\n    when_stores_fail: maybe",
     "plans.free.when_stores_fail", 9, "expected open or closed"),
    (10, "      - {scope: user, requests: ten, per: minute}", "plans.free.limits[0].requests", 10,
     "expected a whole number of at least 1, found 'ten'"),
    (10, "      - {scope: user, requests: 0, per: minute}",
     "plans.free.limits[0].requests", 10, "of at least 1, found 0"),
    (10, "      - {scope: user, requests: '10', per: minute}", "plans.free.limits[0].requests", 10, "without quotes"),
    (10, "      - {scope: user, requests: true, per: minute}", "plans.free.limits[0].requests", 10, "found true"),
    (10, "      - {scope: user, requests: 010, per: minute}", "plans.free.limits[0].requests", 10, "found '010'"),
    (10, "      - {scope: user, requests: 1.5, per: minute}", "plans.free.limits[0].requests", 10, "found 1.5"),
    (10, "      - {scope: user, requests: 9999999999999, per: minute}",
     "plans.free.limits[0].requests", 10, "at most 1000000"),
    (10, "      - {scope: user, requests: 10}", "plans.free.limits[0]", 10, "requests needs per"),
    (10, "      - {scope: user, per: minute}",
     "plans.free.limits[0]", 10, "exactly one of requests, tokens, concurrent"),
    (10, "      - {scope: user, requests: 1, tokens: 1, per: day}",
     "plans.free.limits[0]", 10, "not requests and tokens"),
    (10, "      - {scope: user, requests: 1, per: fortnight}",
     "plans.free.limits[0].per", 10, "second, minute, hour or day"),
    (10, "      - {scope: user, concurrent: 5, per: minute}", "plans.free.limits[0]", 10, "neither per nor burst"),
    (10, "      - {scope: usr, requests: 1, per: day}", "plans.free.limits[0].scope", 10, "did you mean user?"),
    (10, "      - {scope: ip, requests: 1, per: day}", "plans.free.limits[0]", 10, "not ip"),
    (10, "      - {requests: 1, per: day}", "plans.free.limits[0]", 10, "not global"),
    (10, "      - {scope: user, requests: 1, per: day, brust: 2}",
     "plans.free.limits[0].brust", 10, "did you mean burst?"),
    (10, "      - {scope: user, requests: 1, per: day, burst: 100000}", "plans.free.limits[0]", 10, "ten years"),
    (10, "      - {scope: user, requests: 60000001, per: minute}", "plans.free.limits[0]", 10, "per microsecond"),
    (10, "      - {scope: user, requests: 30000, per: second}", "plans.free.limits[0]", 10,
     "as if they were 29412, because a request takes whole microseconds: say 29412 or 30304"),
    (10, "      - {scope: user, requests: 700000, per: second}", "plans.free.limits[0]", 10, "say 500000 or 1000000"),
    (10, "      - {scope: user, requests: 1, per: day}\n      - {scope: user, requests: 2, per: day}",
     "plans.free.limits[1]", 11, "a second user.requests.day"),
    (10, "      - ten", "plans.free.limits[0]", 10, "expected a mapping, found 'ten'"),
    (12, "      - {scope: ip, usd: 25, per: month}", "plans.free.budgets[0]", 12, "not ip"),
    (12, "      - {scope: tenant, usd: 25, per: week}", "plans.free.budgets[0].per", 12, "day, month or life"),
    (12, "      - {scope: tenant, usd: 25}", "plans.free.budgets[0].per", 12, "is missing"),
    (12, "      - {scope: tenant, usd: 1e-9, per: day}", "plans.free.budgets[0].usd", 12, "six decimals"),
    (12, "      - {scope: tenant, tokens: 1, per: day, models: [x]}",
     "plans.free.budgets[0].models[0]", 12, "no model 'x'"),
    (12, "      - {scope: tenant, tokens: 1, per: day, models: []}",
     "plans.free.budgets[0].models", 12, "expected at least 1 entry"),
    (12, "      - {scope: tenant, usd: 1, per: day, alert_at: [0]}",
     "plans.free.budgets[0].alert_at[0]", 12, "above 0"),
    (15, "    - {scope: tenant, requests: 1, per: day}", "global.limits[0]", 15, "ip or global"),
    (15, "    - {requests: 1, per: day}\n    - {requests: 2, per: day}",
     "global.limits[1]", 16, "a second global.requests"),
    (17, "  globex: {plan: fre}", "tenants.globex.plan", 17, "there is no plan 'fre' (did you mean free?)"),
    (17, "  globex: {}", "tenants.globex.plan", 17, "is missing"),
    (17, "  globex: {plan: free, state: suspended}", "tenants.globex.state", 17, "is not known"),
    (17, "  globex: {plan: free, limits: [{requests: 5, per: day}]}", "tenants.globex.limits[0]", 17, "not global"),
    (17, "  globex: {plan: free, limits: [{scope: tenant, user: ann, requests: 5, per: day}]}",
     "tenants.globex.limits[0]", 17, "scope user"),
    (17, "  globex: {plan: free, limits: [{scope: user, requests: 5, per: day, until: soon}]}",
     "tenants.globex.limits[0].until", 17, "a moment such as"),
    (17, "  globex: {plan: free, budgets: [{scope: user, tokens: 5, per: day, models: [smal]}]}",
     "tenants.globex.budgets[0].models[0]", 17, "did you mean small?"),
    (17, "  globex: {plan: free, budgets: [{scope: user, tokens: 5, per: day, models: []}]}",
     "tenants.globex.budgets[0].models", 17, "expected at least 1 entry"),
    (17, "  globex: {plan: free}\n  globex: {plan: free}", "tenants.globex", 18, "a second time: first in line 17"),
    (17, "  globex: {<<: {plan: free}}", "tenants.globex", 17, "merge keys"),
    (17, "  globex: !tenant {plan: free}", "tenants.globex", 17, "the tag '!tenant' is not allowed"),
    (17, "  globex: {plan: free", "", 18, "is not YAML"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "line", "path", "at", "message"), BROKEN, ids=[f"{b[0]}-{b[1].strip()[:60]}" for b in BROKEN]
)
def test_a_mistake_is_named_by_path_and_line(number: int, line: str, path: str, at: int, message: str) -> None:
    found = problems(with_line(number, line))
    assert [(render(problem.path), problem.line) for problem in found] == [(path, at)], [str(p) for p in found]
    assert message in str(found[0])


def test_a_mistake_reads_well() -> None:
    (found,) = problems(with_line(10, "      - {scope: user, requests: ten, per: minute}"))
    assert str(found) == (
        "policy.yaml:10: plans.free.limits[0].requests: expected a whole number of at least 1, found 'ten'"
    )


def test_every_mistake_is_found_at_once() -> None:
    text = with_line(10, "      - {scope: user, requests: ten, per: week}").replace("plan: free", "plan: fre")
    text = text.replace("upstream: openai", "upstream: opnai").replace("usd: 25", "usd: lots")
    found = {(render(problem.path), problem.line) for problem in problems(text)}
    assert found == {
        ("models.small.route[0].upstream", 5),
        ("plans.free.limits[0].requests", 10),
        ("plans.free.limits[0].per", 10),
        ("plans.free.budgets[0].usd", 12),
        ("tenants.globex.plan", 17),
    }


def test_one_mistake_is_not_reported_as_several() -> None:
    """A model that is wrong is there all the same, for the plans that name it."""
    found = problems(with_line(5, "  small: {route: [{upstream: openai, model: 5}]}"))
    assert [render(problem.path) for problem in found] == ["models.small.route[0].model"]
    found = problems(GOOD.replace("models:\n  small: {", "models: 5\nx: {", 1).replace("x: {route", "# x: {route", 1))
    assert [render(problem.path) for problem in found] == ["models"]


def test_a_model_without_a_price_is_right_and_held_at_the_ceiling() -> None:
    policy = parse(GOOD.replace(", price: {input: 0.15, output: 0.60}", ""), {})
    assert policy.models["small"].price is None
    assert policy.ceiling_price.input >= 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping, found nothing"),
        ("- 1", "expected a mapping, found a list"),
        ("[" * 5000, "nested too deeply"),
        ("a: [" * 40 + "1" + "]" * 40, "nested too deeply"),
        ("version: 1\n---\nversion: 1", "expected a single document"),
        ("version: 1\nplans: {a: &x [*x]}", "aliases expand"),
        ("version: 1\n\tplans: {}", "is not YAML"),
        ("version: \x00", "is not YAML"),
        ("version: 1\n? [a]\n: 1", "cannot be a name"),
        ("#" * 1_000_001, "larger than"),
        ("version: 1\nx: !!binary aGk=", "the tag '!!binary'"),
        ("version: !!python/object/apply:os.system [id]", "the tag '!!python/object/apply:os.system'"),
        ('version: "\\uD800"', "character"),
        ("version: \ud800", "half a character"),
        ("version: " + "9" * 5000, "expected 1"),
    ],
    ids=range(15),
)
def test_what_is_no_policy_at_all(text: str, message: str) -> None:
    assert any(message in str(problem) for problem in problems(text))


def test_aliases_are_expanded_within_bounds() -> None:
    laughs = "\n".join(f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 9)}]" for i in range(9))
    assert "aliases expand" in str(problems(f"l0: &l0 [ha]\n{laughs}")[0])
    text = GOOD.replace("models: [small]", "models: &models [small]").replace(
        "global:", "  pro: {models: *models}\nglobal:"
    )
    assert parse(text, {}).plans["pro"].models == ("small",)


def test_the_pure_python_reader_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML may come without libyaml."""
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert plain(parse(GOOD, {})) == plain(parse(GOOD, {}))
    for number, line, path, at, _ in BROKEN:
        if "is not YAML" not in _:
            assert [(render(p.path), p.line) for p in problems(with_line(number, line))] == [(path, at)]
    assert "nested too deeply" in str(problems("[" * 5000)[0])


def test_scalars_mean_what_they_look_like() -> None:
    texts = ("1_000", "0x10", "yes", "1:30", "~", "-5", "1e3", "'5'", "2026-12-01", "!!str 5")
    assert [fragment(text) for text in texts] == [
        1000, "0x10", "yes", "1:30", None, -5, 1000.0, "5", "2026-12-01", "5",
    ]  # fmt: skip


def test_a_date_is_its_midnight() -> None:
    policy = parse(
        with_line(17, "  g: {plan: free, limits: [{scope: user, requests: 5, per: day, until: 2026-12-01}]}"), {}
    )
    until = policy.tenants["g"].limits[0].until
    assert until is not None
    assert until.isoformat() == "2026-12-01T00:00:00+00:00"


@given(st.text(max_size=200))
def test_any_text_gives_a_policy_or_its_errors(text: str) -> None:
    for whole in (text, "version: 1\n" + text, with_line(10, text)):
        assert all(str(problem) for problem in outcome(whole))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(["upstreams", "models", "plans", "global", "tenants", "redis_failure_mode"]), JSON)
def test_any_data_gives_a_policy_or_its_errors(group: str, value: object) -> None:
    data = yaml.safe_load(GOOD) | {group: value}
    assert all(problem.line for problem in outcome(yaml.safe_dump(data)))


# -- the file itself -------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for make, message in (
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"version: 1\n# \xff"), "yaml:2: is not UTF-8"),
        (lambda path: path.write_bytes(b"#" * 1_000_001), "larger than"),
    ):
        path = tmp_path / f"{len(os.listdir(tmp_path))}.yaml"
        make(path)
        with pytest.raises(PolicyErrors, match=message):
            load(path, {})


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load(path, {}).plans


def test_a_served_file_is_read_again_and_a_bad_edit_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    source = FilePolicySource(path, {})
    first = asyncio.run(source.policy())
    assert asyncio.run(source.policy()) is first
    record = asyncio.run(source.tenant("globex"))
    assert record is not None
    assert (record.plan, record.version, record.state) == ("free", 1, "active")
    assert asyncio.run(source.tenant("nobody")) is None

    path.write_text(GOOD.replace("requests: 10,", "requests: ten,"))
    assert asyncio.run(source.policy()) is first
    assert "PolicyRejected" in capsys.readouterr().out
    path.unlink()
    assert asyncio.run(source.policy()) is first
    path.write_text(GOOD.replace("requests: 10,", "requests: 11,"))
    assert asyncio.run(source.policy()).plans["free"].limits[0].requests == 11


# -- overrides -------------------------------------------------------------------------------------------------------


def test_the_environment_sets_single_values() -> None:
    environ = {
        "TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS": "5",
        "TOLLGATE_PLANS__FREE__LIMITS__0__BURST": "7",
        "tollgate_plans__free__when_stores_fail": "open",
        "TOLLGATE_MODELS__SMALL__PRICE__INPUT": "0.25",
        "TOLLGATE_UPSTREAMS__OPENAI__TIMEOUTS__TOTAL": "10.5",
        "TOLLGATE_GLOBAL__LIMITS": '[{"requests": 9, "per": "second"}]',
        "TOLLGATE_TENANTS__GLOBEX__LIMITS": '[{"scope": "user", "requests": 1, "per": "day", "until": "2026-12-01"}]',
        "REDIS_FAILURE_MODE": "closed",
        "TOLLGATE_STORE_URL": "memory://",
        "TOLLGATE_POLICY": "elsewhere.yaml",
        "TOLLGATE_CLAIM__TENANT": "not an override",
    }
    policy = parse(GOOD, environ)
    limit = policy.plans["free"].limits[0]
    assert (limit.requests, limit.burst, policy.plans["free"].when_stores_fail) == (5, 7, "open")
    assert policy.models["small"].price is not None
    assert policy.models["small"].price.input == Decimal("0.25")
    assert policy.upstreams["openai"].timeouts.total == 10.5
    assert [spec.id for spec in policy.everyone.limits] == ["global.requests.second"]
    assert policy.tenants["globex"].limits[0].requests == 1
    assert policy.redis_failure_mode == "closed"


def test_the_failure_mode_is_the_environments_then_the_policys() -> None:
    open_ = "redis_failure_mode: open\n" + GOOD
    assert [parse(text, {}).redis_failure_mode for text in (GOOD, open_)] == [None, "open"]
    assert parse(open_, {"REDIS_FAILURE_MODE": "closed"}).redis_failure_mode == "closed"
    assert parse(open_, {"REDIS_FAILURE_MODE": ""}).redis_failure_mode == "open"
    (found,) = problems(GOOD, {"REDIS_FAILURE_MODE": "shut"})
    assert str(found).startswith("REDIS_FAILURE_MODE: redis_failure_mode: expected fallback, open or closed")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TOLLGATE_PLANS__FRE__MODELS", "[]", "plans: has no 'fre' (did you mean free?)"),
        ("TOLLGATE_PLANS__FREE__LIMITS__1__REQUESTS", "5", "plans.free.limits: has no entry '1': there are 1"),
        ("TOLLGATE_PLANS__FREE__LIMITS__00000000__REQUESTS", "5", "has no entry"),
        ("TOLLGATE_PLANS__FREE__LIMITS__X__REQUESTS", "5", "has no entry 'x'"),
        ("TOLLGATE_PLANS__FREE__LIMITS__0__REQESTS", "5", "did you mean requests?"),
        ("TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS__X", "5", "has no 'x'"),
        ("TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS", "ten", "expected a whole number of at least 1, found 'ten'"),
        ("TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS", "", "found ''"),
        ("TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS", "0", "of at least 1, found 0"),
        ("TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS", "1e400", "found"),
        ("TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS", "9" * 5000, "found"),
        ("TOLLGATE_PLANS__FREE__LIMITS__0__SCOPE", "5", "found '5'"),
        ("TOLLGATE_PLANS__FREE__MODELS", "[" * 100_000, "found '[[["),
        ("TOLLGATE_PLANS__FREE", "null", "found nothing"),
        ("TOLLGATE_PLANS__", "1", "has no ''"),
        ("TOLLGATE_GLOBAL__LIMITS__0", "5", "global.limits[0]: expected a mapping, found 5"),
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_is_named_by_its_variable(variable: str, value: str, message: str) -> None:
    found = problems(GOOD, {variable: value})
    assert all(problem.place.source == variable for problem in found if "there is no plan" not in str(problem))
    assert any(message in str(problem) for problem in found), [str(problem) for problem in found]


def test_names_that_a_variable_cannot_spell() -> None:
    text = GOOD.replace("small", "gpt-4.1/mini")
    assert parse(text, {"TOLLGATE_MODELS__GPT_4_1_MINI__PRICE__INPUT": "9"}).models["gpt-4.1/mini"].price
    text = GOOD.replace("free", "two__parts")
    limit = parse(text, {"TOLLGATE_PLANS__TWO__PARTS__LIMITS__0__REQUESTS": "3"}).plans["two__parts"].limits[0]
    assert limit.requests == 3
    both = GOOD.replace("global:", "  Free: {models: []}\nglobal:")
    assert "could mean plans.free.models and plans.Free.models" in str(
        problems(both, {"TOLLGATE_PLANS__FREE__MODELS": "[]"})[0]
    )
    twice = {"TOLLGATE_PLANS__FREE__MODELS": "[]", "tollgate_plans__free__models": "[]"}
    assert "is set by TOLLGATE_PLANS__FREE__MODELS too" in str(problems(GOOD, twice)[0])


NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._/-]{0,20}\Z").filter(lambda name: "\n" not in name)


@given(name=NAMES, amount=st.integers(1, 10**5), field=st.sampled_from(["REQUESTS", "burst", "Requests"]))
def test_any_plan_can_be_overridden_by_its_name(name: str, amount: int, field: str) -> None:
    text = f"version: 1\nplans:\n  '{name}':\n    models: []\n    limits: [{{scope: user, requests: 5, per: minute}}]"
    spelled = "".join(c if c.isalnum() else "_" for c in name)
    policy = parse(text, {f"TOLLGATE_PLANS__{spelled}__LIMITS__0__{field}": str(amount)})
    assert getattr(policy.plans[name].limits[0], field.lower()) == amount


@given(
    st.lists(
        st.sampled_from(["PLANS", "FREE", "LIMITS", "0", "REQUESTS", "", "GLOBAL", "_", "MODELS", "SMALL"]), max_size=8
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
)
def test_any_variable_sets_something_or_is_named(parts: list[str], value: str) -> None:
    variable = "TOLLGATE_" + "__".join(parts)
    found = outcome(GOOD, {variable: value})
    assert not found or any(problem.place.source == variable for problem in found)
