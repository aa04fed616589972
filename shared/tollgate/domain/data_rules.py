"""Data rules: where the prompts of a tenant, or of one of its teams, may go, whatever their callers send.

Rules are flags on the tenant's record; what they ask for is promised by the policy's upstreams. A place that promises
nothing fulfils nothing: an upstream without a region is in no region. All rules that apply to a caller hold together,
so a team's can only narrow its tenant's. Whoever forwards a call picks among `permitted` routes and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from tollgate.domain.schema import Count, Spec
from tollgate.domain.schema_kinds import Text

if TYPE_CHECKING:
    from tollgate.domain.policy import RouteSpec, UpstreamSpec

Region = Annotated[str, Text(r"[a-z0-9-]{2,32}")]
"""A region (``eu-central-1``), or what the names of several begin with (``eu``)."""


class DataRules(Spec):
    """What a tenant or a team asks of every place that sees its prompts and answers."""

    phi: bool = False
    """Protected health information: only upstreams whose contract covers it (`phi`)."""
    regions: Annotated[tuple[Region, ...], Count(1, 64)] | None = None
    """Only upstreams in these; ``eu`` allows ``eu-central-1``."""
    no_content_logging: bool = False
    """Only upstreams that keep neither prompts nor answers (`no_content_logging`), and no request that asks to."""
    models: Annotated[tuple[Annotated[str, Text(least=1, most=63)], ...], Count(1)] | None = None
    """Only these of the plan's models."""


def permitted(
    rules: Sequence[DataRules], routes: Iterable[RouteSpec], upstreams: Mapping[str, UpstreamSpec]
) -> tuple[RouteSpec, ...]:
    """Those of a model's routes that break no rule."""
    return tuple([route for route in routes if not broken(rules, route, upstreams[route.upstream])])


def broken(rules: Sequence[DataRules], route: RouteSpec, upstream: UpstreamSpec) -> str:
    """The first rule that a route would break, as a caller is told who has no other; empty if it breaks none."""
    for rule in rules:
        if rule.phi and not upstream.phi:
            return "none of its providers is cleared for protected health information"
        if rule.no_content_logging and not upstream.no_content_logging:
            return "none of its providers promises to keep no content"
        if rule.regions is not None and not _within(place(route, upstream), rule.regions):
            return f"none of its providers is in {' or '.join(rule.regions)}"
    return ""


def objection(
    rules: Sequence[DataRules], model: str, routes: Sequence[RouteSpec], upstreams: Mapping[str, UpstreamSpec]
) -> str:
    """Why the rules leave no way to use a model on these routes, as the caller is told; empty if they do."""
    if any(rule.models is not None and model not in rule.models for rule in rules):
        return "they name others only"
    reasons = [broken(rules, route, upstreams[route.upstream]) for route in routes]
    return reasons[0] if reasons and all(reasons) else ""


def retains_nothing(rules: Iterable[DataRules]) -> bool:
    return any(rule.no_content_logging for rule in rules)


def place(route: RouteSpec, upstream: UpstreamSpec) -> str:
    """The region in which a route's model computes; empty if nobody says.

    Bedrock's inference profiles spread calls over a geography, which their names begin with, whatever the region that
    they are called in; an application's own profile tells nothing by its name.
    """
    if route.region is not None:
        return route.region
    if upstream.is_bedrock:
        profile, dot, _ = route.model.rpartition("/")[2].partition(".")
        if "application-inference-profile/" in route.model or (dot and profile == "global"):
            return ""
        if dot and profile in _GEOGRAPHIES:
            return _GEOGRAPHIES[profile]
    return upstream.region or ""


_GEOGRAPHIES = {"us": "us", "us-gov": "us-gov", "eu": "eu", "apac": "ap", "jp": "jp", "au": "au", "ca": "ca"}


def _within(region: str, allowed: Iterable[str]) -> bool:
    return any(region == one or region.startswith(one + "-") for one in allowed)
