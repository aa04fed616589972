"""The policy that the local stack runs: the user's file, with every upstream replaced by a server that is here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import tollgate
from tollgate.domain.policy import LOOPBACK, Policy, TenantSpec, UpstreamSpec
from tollgate.domain.policy_document import Document
from tollgate.domain.schema import plain, read
from tollgate.local.children import NotStarted

TENANTS = {"acme": "pro", "globex": "free", "initech": "enterprise"}
"""Demo tenants and their plans; only those whose plan the policy has."""

KEY_VARIABLE = "TOLLGATE_UPSTREAM_KEY"
SECRET = "tollgate/upstream"  # noqa: S105 - the name of a secret


def find_file(given: str | None, environ: Mapping[str, str]) -> Path:
    """The policy's file: the one given, else TOLLGATE_POLICY, else policy.yaml here or beside the package."""
    if chosen := given or environ.get("TOLLGATE_POLICY"):
        return Path(chosen)
    here = Path("policy.yaml")
    return here if here.is_file() else Path(tollgate.__file__).parents[2] / "policy.yaml"


def load(given: str | None, environ: Mapping[str, str]) -> Policy:
    """The policy of the file, validated. Raises `NotStarted` with every error of it, a line each."""
    from tollgate.adapters.policy_file import PolicyErrors, load

    try:
        return load(find_file(given, environ), environ)
    except PolicyErrors as errors:
        raise NotStarted(str(errors)) from None


def upstream_url(given: str) -> str:
    """`--upstream` as a `base_url`: it ends before ``/chat/completions``, and a bare origin means its ``/v1``."""
    url = given.rstrip("/")
    return url + "/v1" if urlsplit(url).path in ("", "/") else url


def redirect(policy: Policy, demo_url: str, given_url: str | None) -> Policy:
    """The policy with the demo tenants, and with upstreams that can be called from here.

    Every upstream becomes the one that the user gave, an OpenAI-compatible server; if none was given, the demo model,
    which speaks Anthropic's API and Bedrock's Converse, too, but for those that are on this machine and need no key.
    Raises `NotStarted`.
    """
    upstreams = {name: _redirected(spec, demo_url, given_url) for name, spec in policy.upstreams.items()}
    demo = {name: TenantSpec(plan=plan) for name, plan in TENANTS.items() if plan in policy.plans}
    return policy.replace(upstreams=upstreams, tenants={**demo, **policy.tenants})


def _redirected(spec: UpstreamSpec, demo_url: str, given_url: str | None) -> UpstreamSpec:
    if given_url is None:
        if spec.base_url and spec.secret is None and urlsplit(spec.base_url).hostname in LOOPBACK:
            return spec
        # what it promises about data stays: tenants' rules about that can be tried
        return spec.replace(api="openai" if spec.api == "bedrock" else spec.api, base_url=demo_url, secret=None)
    url = upstream_url(given_url)
    here = urlsplit(url).hostname in LOOPBACK
    secret = None if here and KEY_VARIABLE not in os.environ else SECRET
    given = UpstreamSpec(api="openai", base_url=url, secret=secret, timeouts=spec.timeouts, limits=spec.limits)
    checked, problems = read(UpstreamSpec, Document(plain(given)))
    if checked is None:
        raise NotStarted(f"--upstream {given_url}: {problems[0].message}")
    return checked


def upstream_key(policy: Policy, environ: Mapping[str, str]) -> str | None:
    """The key for the upstream, where the redirected policy asks for one. Raises `NotStarted` if it is not given."""
    if not any(spec.secret == SECRET for spec in policy.upstreams.values()):
        return None
    if key := environ.get(KEY_VARIABLE):
        return key
    raise NotStarted(f"this upstream is not on this machine: set {KEY_VARIABLE} to its API key")
