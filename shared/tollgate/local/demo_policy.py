"""The policy that the local stack runs: the user's file, with every upstream replaced by a server that is here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import tollgate
from tollgate.domain.policy import LOOPBACK, Policy, TenantSpec, UpstreamSpec
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

    path = find_file(given, environ)
    try:
        return load(path, environ)
    except OSError as error:
        raise NotStarted(f"cannot read the policy {path}: {os.strerror(error.errno or 0)}") from None
    except PolicyErrors as errors:
        raise NotStarted(str(errors)) from None


def upstream_url(given: str) -> str:
    """`--upstream` as a `base_url`: it ends before ``/chat/completions``, and a bare origin means its ``/v1``."""
    url = given.rstrip("/")
    return url + "/v1" if urlsplit(url).path in ("", "/") else url


def redirect(policy: Policy, url: str, *, all_openai: bool) -> Policy:
    """The policy with the demo tenants, and every upstream at `url`: the demo model, which speaks Anthropic's API too,
    or a server that is OpenAI-compatible (`all_openai`). Raises `NotStarted` if it cannot be an upstream."""
    loopback = urlsplit(url).hostname in LOOPBACK
    secret = None if loopback and KEY_VARIABLE not in os.environ else SECRET
    upstreams = {}
    for name, spec in policy.upstreams.items():
        try:
            upstreams[name] = UpstreamSpec(
                api="anthropic" if spec.api == "anthropic" and not all_openai else "openai",
                base_url=url,
                secret=secret,
                timeouts=spec.timeouts,
                limits=spec.limits,
            )
        except ValueError as error:
            reason = str(error).splitlines()[-2].strip() if "\n" in str(error) else str(error)
            raise NotStarted(f"--upstream {url}: {reason}") from None
    demo = {name: TenantSpec(plan=plan) for name, plan in TENANTS.items() if plan in policy.plans}
    return policy.model_copy(update={"upstreams": upstreams, "tenants": demo | policy.tenants})


def upstream_key(policy: Policy, environ: Mapping[str, str]) -> str | None:
    """The key for the upstream, where the redirected policy asks for one. Raises `NotStarted` if it is not given."""
    if not any(spec.secret == SECRET for spec in policy.upstreams.values()):
        return None
    if key := environ.get(KEY_VARIABLE):
        return key
    raise NotStarted(f"this upstream is not on this machine: set {KEY_VARIABLE} to its API key")
