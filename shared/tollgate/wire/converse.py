"""Bedrock's Converse: ``POST /model/{model}/converse`` and ``…/converse-stream``, as AWS SDKs call them.

The model is named by the path, the answer's maximum stands in `inferenceConfig`, and the shapes are Bedrock's own; the
rest is as on every other route.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from tollgate.wire.fields import wrong_type
from tollgate.wire.guards import Feature, Guard, always
from tollgate.wire.routes import Route

_PATH = re.compile(r"/model/(.{1,200})/(converse|converse-stream)")

_HARMLESS = frozenset({"top_k", "topK", "thinking", "reasoning_config", "reasoningConfig", "reasoning_effort", "seed"})
"""What may be handed on to a model beside Converse's own fields: others could raise a maximum, ask for several answers
or run tools."""


def route_of(path: str) -> Route | None:
    """The route for a path, if it is one of Converse's. `path` is as ASGI gives it, or still percent-encoded."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    return _route(unquote(found[1]), found[2])


@lru_cache(maxsize=512)
def _route(model: str, operation: str) -> Route:
    return replace(_CONVERSE, path=f"/model/*/{operation}", model=model, operation=operation)


def _ordinary(name: str, member: str, value: str) -> Guard:
    """Needs another tier unless the member of that object has its usual value."""

    def guard(found: Any) -> Feature | None:
        return None if _object(name, found).get(member) in (None, value) else Feature.SERVICE_TIER

    return guard


def _tools(value: Any) -> Feature | None:
    tools = _object("toolConfig", value).get("tools")
    if type(tools) is not list:
        raise wrong_type("toolConfig", "an object with an array 'tools'", value)
    at_caller = {"toolSpec", "cachePoint"}
    ours = all(type(tool) is dict and tool.keys() <= at_caller for tool in tools)
    return None if ours else Feature.HOSTED_TOOLS


def _more(value: Any) -> Feature | None:
    return None if _object("additionalModelRequestFields", value).keys() <= _HARMLESS else Feature.ROUTING


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if type(value) is not dict:
        raise wrong_type(name, "an object", value)
    return value


_CONVERSE = Route(
    path="",
    api="converse",
    upstream_path="",
    shape="converse",
    prompt="messages",
    content=("system",),
    schema=("toolConfig", "outputConfig"),
    maxima=("maxTokens",),
    multiples=(),
    guards=MappingProxyType(
        {
            "toolConfig": _tools,
            "additionalModelRequestFields": _more,
            "performanceConfig": _ordinary("performanceConfig", "latency", "standard"),
            "serviceTier": _ordinary("serviceTier", "type", "default"),
            "guardrailConfig": always(Feature.HOSTED_TOOLS),  # billed by the size of what it checks
            "promptVariables": always(Feature.REFERENCES),
        }
    ),
)
