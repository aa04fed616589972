"""The local stack's policy: the user's, with upstreams that can be called from here."""

from pathlib import Path

import pytest

from tollgate.domain.policy import Policy
from tollgate.domain.policy_check import check
from tollgate.domain.policy_document import Document
from tollgate.local import demo_policy
from tollgate.local.children import NotStarted

DEMO = "http://127.0.0.1:9999/v1"


def policy(**upstream: object) -> Policy:
    spec = {"api": "openai", "base_url": "https://api.openai.com/v1", "secret": "tollgate/openai", **upstream}
    document = Document(
        {
            "version": 1,
            "upstreams": {"main": spec},
            "models": {"small": {"route": [{"upstream": "main", "model": "m"}]}},
            "plans": {"free": {"models": ["small"]}, "pro": {"models": ["small"]}},
            "tenants": {"globex": {"plan": "pro"}, "own": {"plan": "free"}},
        }
    )
    return check(document)


def test_upstreams_become_the_demo_model() -> None:
    limits = [{"tokens": 5, "per": "minute"}]
    found = demo_policy.redirect(policy(timeouts={"idle": 3}, limits=limits), DEMO, None).upstreams["main"]
    assert (found.base_url, found.secret, found.api) == (DEMO, None, "openai")
    assert (found.timeouts.idle, found.limits[0].tokens) == (3, 5)
    anthropic = policy(api="anthropic", base_url="https://api.anthropic.com/v1")
    assert demo_policy.redirect(anthropic, DEMO, None).upstreams["main"].api == "anthropic"
    bedrock = policy(api="bedrock", base_url=None, secret=None, region="eu-central-1")
    assert demo_policy.redirect(bedrock, DEMO, None).upstreams["main"].url == DEMO


def test_an_upstream_that_is_here_stays() -> None:
    here = policy(base_url="http://127.0.0.1:1234/v1", secret=None)
    assert demo_policy.redirect(here, DEMO, None).upstreams == here.upstreams
    assert demo_policy.redirect(here, DEMO, "http://localhost:7").upstreams["main"].url == "http://localhost:7/v1"


def test_a_given_upstream_takes_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(demo_policy.KEY_VARIABLE, raising=False)
    found = demo_policy.redirect(policy(api="anthropic"), DEMO, "http://127.0.0.1:7000/")
    assert found.upstreams["main"].api == "openai"
    assert found.upstreams["main"].url == "http://127.0.0.1:7000/v1"
    assert demo_policy.upstream_key(found, {}) is None


def test_an_upstream_elsewhere_needs_a_key() -> None:
    found = demo_policy.redirect(policy(), DEMO, "https://models.example.com/openai/v1")
    assert found.upstreams["main"].secret == demo_policy.SECRET
    assert demo_policy.upstream_key(found, {demo_policy.KEY_VARIABLE: "sk-1"}) == "sk-1"
    with pytest.raises(NotStarted, match=demo_policy.KEY_VARIABLE):
        demo_policy.upstream_key(found, {})


@pytest.mark.parametrize("url", ["http://example.com", "ftp://127.0.0.1/v1", "127.0.0.1:80", "https://a/v1?x=1"])
def test_a_url_that_cannot_be_an_upstream_is_one_clear_line(url: str) -> None:
    with pytest.raises(NotStarted, match="--upstream") as caught:
        demo_policy.redirect(policy(), DEMO, url)
    assert "\n" not in str(caught.value)


def test_demo_tenants_are_those_whose_plan_exists_and_the_files_own_stay() -> None:
    found = demo_policy.redirect(policy(), DEMO, None).tenants
    assert {name: spec.plan for name, spec in found.items()} == {"acme": "pro", "globex": "pro", "own": "free"}


def test_where_the_policy_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo_policy.find_file("a.yaml", {"TOLLGATE_POLICY": "b.yaml"}) == Path("a.yaml")
    assert demo_policy.find_file(None, {"TOLLGATE_POLICY": "b.yaml"}) == Path("b.yaml")
    assert demo_policy.find_file(None, {}).is_file()  # the repository's
    (tmp_path / "policy.yaml").touch()
    assert demo_policy.find_file(None, {}) == Path("policy.yaml")


def test_a_policy_that_cannot_be_read_or_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotStarted, match="No such file"):
        demo_policy.load(str(tmp_path / "none.yaml"), {})
    (tmp_path / "bad.yaml").write_text("version: 1\nplans: {free: {models: [nothing]}}\n")
    with pytest.raises(NotStarted, match="nothing"):
        demo_policy.load(str(tmp_path / "bad.yaml"), {})
