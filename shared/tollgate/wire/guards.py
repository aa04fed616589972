"""What is refused by name, because it would cost or share something that is not metered here (docs/adr/0022).

A guard looks at one field of a request. Values that are known to be harmless pass; providers keep adding others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from tollgate.wire.errors import not_available, shown
from tollgate.wire.fields import flag, wrong_type


class Feature(StrEnum):
    """What a request may ask for that tokens do not pay for, or that the shared key of the provider would open to all
    tenants."""

    BACKGROUND = "background"
    """Answers that are fetched later: their usage would not be seen."""
    SERVICE_TIER = "service_tier"
    """Processing at another price."""
    HOSTED_TOOLS = "hosted_tools"
    """Tools that the provider runs, and bills by call."""
    STORE = "store"
    """Answers that the provider keeps."""
    REFERENCES = "references"
    """Ids of what the provider keeps: files, earlier answers, conversations, containers."""
    AUDIO = "audio"
    """Spoken answers, whose tokens cost more."""
    ROUTING = "routing"
    """Models, places and plugins of the upstream's or the caller's own choosing: those are the policy's to choose."""


Guard = Callable[[Any], Feature | None]
"""Looks at a field's value (never None); says which feature it asks for. Raises `ApiError` if it is malformed."""

WORDS = {
    Feature.BACKGROUND: "Background processing",
    Feature.SERVICE_TIER: "{name} {value}",
    Feature.HOSTED_TOOLS: "A tool or plugin in '{name}' that the provider runs",
    Feature.STORE: "Storing answers at the provider ('{name}')",
    Feature.REFERENCES: "Referring to stored content ('{name}')",
    Feature.AUDIO: "Audio output ('{name}')",
    Feature.ROUTING: "Choosing models, places or plugins by '{name}'",
}
"""What an error calls them."""


def refuse(guards: Mapping[str, Guard], fields: Mapping[str, Any]) -> None:
    """Raises `ApiError` (400) for the first field that asks for such a feature, or is malformed."""
    for name, value in fields.items():
        if name in guards and value is not None:
            feature = guards[name](value)
            if feature is not None:
                raise not_available(name, WORDS[feature].format(name=name, value=shown(value)))


def if_true(name: str, feature: Feature) -> Guard:
    return lambda value: feature if flag({name: value}, name) else None


def unless_in(ordinary: frozenset[str], feature: Feature) -> Guard:
    return lambda value: None if type(value) is str and value in ordinary else feature


def always(feature: Feature) -> Guard:
    return lambda value: feature


def if_any(feature: Feature) -> Guard:
    """Asks for the feature unless the value is empty."""
    return lambda value: feature if value not in ([], {}, "", False) else None


def _modalities(value: Any) -> Feature | None:
    return None if type(value) is list and all(item == "text" for item in value) else Feature.AUDIO


def _tools(runs_at_caller: Callable[[Any], bool]) -> Guard:
    """Only tools that are known to run at the caller pass: providers keep adding paid ones."""

    def guard(value: Any) -> Feature | None:
        if type(value) is not list:
            raise wrong_type("tools", "an array", value)
        for at, tool in enumerate(value):
            if type(tool) is not dict:
                raise wrong_type(f"tools[{at}]", "an object", tool)
            if not runs_at_caller(tool.get("type")):
                return Feature.HOSTED_TOOLS
        return None

    return guard


_CHAT_TOOLS = frozenset({"function", "custom"})
_RESPONSES_TOOLS = frozenset({"function", "custom", "local_shell", "apply_patch"})
_MESSAGES_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")

_chat_tools = _tools(lambda kind: type(kind) is str and kind in _CHAT_TOOLS)
_responses_tools = _tools(lambda kind: type(kind) is str and kind in _RESPONSES_TOOLS)
_messages_tools = _tools(lambda kind: kind is None or (type(kind) is str and kind.startswith(_MESSAGES_TOOLS)))


def _responses_input(value: Any) -> Feature | None:
    """Items may bring tools of their own; and one that is nothing but an id refers to a stored item (its type is
    optional)."""
    if type(value) is not list:
        return None
    for item in value:
        if type(item) is not dict:
            continue
        if item.get("tools") is not None and (feature := _responses_tools(item["tools"])) is not None:
            return feature
        if "id" in item and item.get("type") is None and item.get("role") is None:
            return Feature.REFERENCES
    return None


COMMON_GUARDS: dict[str, Guard] = {
    "service_tier": unless_in(frozenset({"auto", "default"}), Feature.SERVICE_TIER),
    "models": if_any(Feature.ROUTING),
    "fallbacks": if_any(Feature.ROUTING),
    "plugins": if_any(Feature.ROUTING),
    "provider": if_any(Feature.ROUTING),
}

CHAT_GUARDS: dict[str, Guard] = {
    **COMMON_GUARDS,
    "store": if_true("store", Feature.STORE),
    "background": if_true("background", Feature.BACKGROUND),
    "tools": _chat_tools,
    "data_sources": always(Feature.HOSTED_TOOLS),
    "web_search_options": always(Feature.HOSTED_TOOLS),
    "modalities": _modalities,
}

RESPONSES_GUARDS: dict[str, Guard] = {
    **COMMON_GUARDS,
    "store": if_true("store", Feature.STORE),
    "background": if_true("background", Feature.BACKGROUND),
    "tools": _responses_tools,
    "input": _responses_input,
    "modalities": _modalities,
    "previous_response_id": if_any(Feature.REFERENCES),
    "conversation": if_any(Feature.REFERENCES),
    "prompt": always(Feature.REFERENCES),  # a template kept at the provider, which may bring tools
}

MESSAGES_GUARDS: dict[str, Guard] = {
    **COMMON_GUARDS,
    "service_tier": unless_in(frozenset({"auto", "standard_only"}), Feature.SERVICE_TIER),
    "speed": unless_in(frozenset({"standard"}), Feature.SERVICE_TIER),
    "inference_geo": always(Feature.ROUTING),
    "tools": _messages_tools,
    "mcp_servers": if_any(Feature.HOSTED_TOOLS),
    "container": always(Feature.REFERENCES),
}
