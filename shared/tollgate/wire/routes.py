"""The routes that the gateway serves, and what each request on them asks for.

`Route.read` turns a parsed body into a `Call`: the model, how large prompt and answer may become, and what has to be
changed in the body. Whatever would cost or share something that is not metered here is refused, unless allowed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

from tollgate.domain.usage import BYTES_PER_TOKEN, MAX_TOKENS, tokens_of
from tollgate.wire.body import Body, BodyError
from tollgate.wire.errors import Api, invalid_request, not_available, shown
from tollgate.wire.prompt import IMAGE_TOKENS, ConversePrompt, Prompt, are_integers

KEYED_PREFIX = "/anthropic/v1/"
"""The same routes once more, for callers who send `x-api-key`: API Gateway can ask only for one header per route. It is
what Anthropic's SDK makes of a `base_url` that ends in ``/anthropic``."""


class Shape(StrEnum):
    """How requests and answers of a route look."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    MESSAGES = "messages"
    CONVERSE = "converse"


class Feature(StrEnum):
    """What a plan has to allow expressly, because tokens do not pay for it or because the provider's key is shared."""

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


@dataclass(slots=True)
class Call:
    """What one request asks for. (Not frozen: a frozen one takes three times as long to make.)"""

    route: Route
    model: str
    """As the caller named it."""
    stream: bool
    prompt_bytes: int
    """UTF-8 bytes of the prompt's text."""
    prompt_tokens: int
    """Tokens of the prompt besides its text: token arrays (exact) and media (flat estimates)."""
    answers: int
    """How many answers are generated and billed, each up to the maximum."""
    max_output: int | None
    """The most tokens that all answers together can have; None: the caller gave no maximum."""
    max_output_field: str
    """The name of the field that limits an answer, for errors."""
    withhold_usage: bool
    """The stream's usage chunk was asked for by us alone, and is kept from the caller."""
    retained: str = ""
    """The name of the field that asks the provider to keep content beyond the answer; empty: none does."""
    media: bool = False
    """Whether the prompt has an image, a sound or a file."""
    changes: dict[str, str] = field(default_factory=dict)
    """What the body needs changed: top-level name to JSON text. Add the model where it has an alias."""

    def prompt_estimate(self, bytes_per_token: float = BYTES_PER_TOKEN) -> int:
        """Tokens of the whole prompt, with the ratio learned for the model."""
        return self.prompt_tokens + tokens_of(self.prompt_bytes, bytes_per_token)

    def largest_maximum(self, tokens: int, bytes_per_token: float = BYTES_PER_TOKEN) -> int:
        """The largest maximum for each answer with which the whole call needs at most `tokens`; 0 if none has."""
        return max(0, tokens - self.prompt_estimate(bytes_per_token)) // self.answers


Guard = Callable[[Any], Feature | None]
"""Looks at a field's value (never None); says which feature it needs. Raises `ApiError` if it is malformed."""


class Route(NamedTuple):
    """One endpoint: where it is, whose shapes it speaks, and which fields mean what."""

    path: str
    api: Api
    upstream_path: str
    """What follows the upstream's `base_url`."""
    shape: Shape
    prompt: str
    """The required field that holds the prompt."""
    content: tuple[str, ...]
    """Further fields that are content of the prompt."""
    schema: tuple[str, ...]
    """Fields that become part of the prompt but hold definitions, not content."""
    maxima: tuple[str, ...]
    """Fields that limit one answer's tokens; the largest of them counts. The last is the one to name in errors."""
    multiples: tuple[str, ...]
    """Fields that multiply the number of answers; the largest of them counts."""
    guards: Mapping[str, Guard]
    model: str = ""
    """The model, where the path names it rather than the body."""
    operation: str = ""
    """What follows the model in such a path."""

    def sent_to(self, upstream_model: str) -> str:
        """The path below the upstream's `base_url`."""
        if not self.model:
            return self.upstream_path
        return f"/model/{quote(upstream_model, safe='')}/{self.operation}"

    def read(self, body: Body, allowed: Collection[str] = (), *, image_tokens: int = IMAGE_TOKENS) -> Call:
        """What the request asks for. Raises `ApiError` (400) for what is malformed or not `allowed` (see `Feature`)."""
        fields = body.fields
        model = self.model or _model(fields)
        stream = _flag(fields, "stream")
        self._check(fields, allowed)
        prompt = self._measure(fields, image_tokens)
        if prompt.reference is not None and Feature.REFERENCES not in allowed:
            raise not_available(self.prompt, f"Referring to stored content ({prompt.reference})")
        answers = prompt.count
        if self.multiples:
            answers *= max(_largest(fields, self.multiples)[0], 1)
        limits: Mapping[str, Any] = fields
        if self.shape is Shape.CONVERSE:
            stream, limits = self.operation == "converse-stream", _inference(fields)
        largest, limit_field = _largest(limits, self.maxima)
        max_output: int | None = largest * answers or None
        if answers > MAX_TOKENS or largest * answers > MAX_TOKENS:
            raise invalid_request(
                f"{answers} answers of up to {largest} tokens are more than this API can count.",
                limit_field or _largest(fields, self.multiples)[1] or self.prompt,
                "integer_above_max_value",
            )
        changes: dict[str, str] = {}
        withhold = False
        if self.shape is Shape.EMBEDDINGS:
            stream, max_output = False, 0
        elif self.shape is Shape.MESSAGES:
            if max_output is None:
                raise invalid_request("max_tokens: Field required", "max_tokens", "missing_required_parameter")
        elif self.shape is Shape.RESPONSES:
            if fields.get("store") is None:
                changes["store"] = "false"  # absent means true there
        elif stream and self.shape is not Shape.CONVERSE:
            withhold = _ask_for_usage(fields, changes)
        return Call(
            route=self,
            model=model,
            stream=stream,
            prompt_bytes=prompt.text_bytes,
            prompt_tokens=prompt.tokens,
            answers=answers,
            max_output=max_output,
            max_output_field=limit_field or (self.maxima[-1] if self.maxima else self.prompt),
            withhold_usage=withhold,
            retained=_retained(fields),
            media=prompt.media,
            changes=changes,
        )

    def _check(self, fields: Mapping[str, Any], allowed: Collection[str]) -> None:
        guards = self.guards
        for name, value in fields.items():
            if name in guards and value is not None:
                feature = guards[name](value)
                if feature is not None and feature not in allowed:
                    raise not_available(name, _WORDS[feature].format(name=name, value=shown(value)))

    def _measure(self, fields: Mapping[str, Any], image_tokens: int) -> Prompt:
        prompt = ConversePrompt() if self.shape is Shape.CONVERSE else Prompt()
        value = fields.get(self.prompt)
        if value is None and not (self.shape is Shape.RESPONSES and fields.get("prompt") is not None):
            raise invalid_request(f"you must provide '{self.prompt}'", self.prompt, "missing_required_parameter")
        if self.shape in (Shape.CHAT, Shape.MESSAGES, Shape.CONVERSE):
            _check_messages(value)
            prompt.add(value, image_tokens)
        elif self.shape is Shape.RESPONSES:
            if type(value) not in (str, list, type(None)):
                raise _wrong_type("input", "a string or an array", value)
            prompt.add(value, image_tokens)
        else:
            _check_texts(self.prompt, value)
            prompt.add_texts_or_tokens(value)
        for name in self.content:
            if name in fields:
                prompt.add(fields[name], image_tokens)
        for name in self.schema:
            if name in fields:
                prompt.add(fields[name], content=False)
        return prompt


_WORDS = {
    Feature.BACKGROUND: "Background processing",
    Feature.SERVICE_TIER: "{name} {value}",
    Feature.HOSTED_TOOLS: "A tool or plugin in '{name}' that the provider runs",
    Feature.STORE: "Storing answers at the provider ('{name}')",
    Feature.REFERENCES: "Referring to stored content ('{name}')",
    Feature.AUDIO: "Audio output ('{name}')",
    Feature.ROUTING: "Choosing models, places or plugins by '{name}'",
}


# -- fields ------------------------------------------------------------------------------------------------------


def _wrong_type(name: str, expected: str, value: object) -> Exception:
    return invalid_request(f"'{name}' must be {expected}, not {shown(value)}.", name, "invalid_type")


def _model(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if model is None or model == "":
        raise invalid_request("you must provide a model parameter", "model", "missing_required_parameter")
    if type(model) is not str:
        raise _wrong_type("model", "a string", model)
    return model


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    if type(value) is not bool:
        raise _wrong_type(name, "true or false", value)
    return value


def _count(fields: Mapping[str, Any], name: str) -> int | None:
    """A whole number of at least 1, or None where it is absent or null. (In Python True is an int; here it is not.)"""
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise _wrong_type(name, "an integer", value)
    if value < 1:
        raise invalid_request(f"'{name}' must be at least 1, not {shown(value)}.", name, "integer_below_min_value")
    if value > MAX_TOKENS:
        raise invalid_request(f"'{name}' must be at most {MAX_TOKENS}.", name, "integer_above_max_value")
    return value


def _largest(fields: Mapping[str, Any], names: tuple[str, ...]) -> tuple[int, str]:
    """The largest of these counts and the name of the first one given; 0 and nothing if none is."""
    largest, first = 0, ""
    for name in names:
        if name in fields and (value := _count(fields, name)) is not None:
            first = first or name
            largest = max(largest, value)
    return largest, first


def _inference(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where Converse has the answer's maximum."""
    config = fields.get("inferenceConfig")
    if config is None:
        return {}
    if type(config) is not dict:
        raise _wrong_type("inferenceConfig", "an object", config)
    return config


def _check_messages(value: Any) -> None:
    if type(value) is not list:
        raise _wrong_type("messages", "an array", value)
    if not value:
        raise invalid_request("'messages' must not be empty.", "messages", "empty_array")
    for at, message in enumerate(value):
        if type(message) is not dict:
            raise _wrong_type(f"messages[{at}]", "an object", message)


def _check_texts(name: str, value: Any) -> None:
    """A text, or an array of texts, token ids, or arrays of token ids."""
    if type(value) is str:
        return
    if type(value) is not list:
        raise _wrong_type(name, "a string or an array", value)
    if not value:
        raise invalid_request(f"'{name}' must not be empty.", name, "empty_array")
    if are_integers(value):
        return
    kind = type(value[0])
    for at, item in enumerate(value):
        same = type(item) is kind and kind in (str, list)
        if not same or (kind is list and not are_integers(item)):
            raise _wrong_type(f"{name}[{at}]", "a string, a token id or an array of token ids, as its neighbours", item)


def _retained(fields: Mapping[str, Any]) -> str:
    """The field that has the provider keep the prompt's cache on disk, for a day, say."""
    name = "prompt_cache_retention"
    return name if fields.get(name) not in (None, "in_memory", "in-memory") else ""


def _ask_for_usage(fields: Mapping[str, Any], changes: dict[str, str]) -> bool:
    """Have the stream end with its usage, whatever the caller said; True if the caller did not ask for that."""
    options = fields.get("stream_options")
    if options is None:
        changes["stream_options"] = '{"include_usage":true}'
        return True
    if type(options) is not dict:
        raise _wrong_type("stream_options", "an object", options)
    asked = options.get("include_usage")
    if asked is True:
        return False
    if asked is not None and asked is not False:
        raise _wrong_type("stream_options.include_usage", "true or false", asked)
    try:
        changes["stream_options"] = json.dumps({**options, "include_usage": True}, allow_nan=False)
    except (RecursionError, ValueError):
        raise BodyError("'stream_options' cannot be understood.", "stream_options", "invalid_value") from None
    return True


# -- guards ------------------------------------------------------------------------------------------------------


def _if_true(name: str, feature: Feature) -> Guard:
    return lambda value: feature if _flag({name: value}, name) else None


def _unless_in(ordinary: frozenset[str], feature: Feature) -> Guard:
    return lambda value: None if type(value) is str and value in ordinary else feature


def _always(feature: Feature) -> Guard:
    return lambda value: feature


def _if_any(feature: Feature) -> Guard:
    """Needs the feature unless the value is empty."""
    return lambda value: feature if value not in ([], {}, "", False) else None


def _modalities(value: Any) -> Feature | None:
    return None if type(value) is list and all(item == "text" for item in value) else Feature.AUDIO


def _tools(runs_at_caller: Callable[[Any], bool]) -> Guard:
    """Only tools that are known to run at the caller pass: providers keep adding paid ones."""

    def guard(value: Any) -> Feature | None:
        if type(value) is not list:
            raise _wrong_type("tools", "an array", value)
        for at, tool in enumerate(value):
            if type(tool) is not dict:
                raise _wrong_type(f"tools[{at}]", "an object", tool)
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


_COMMON: dict[str, Guard] = {
    "service_tier": _unless_in(frozenset({"auto", "default"}), Feature.SERVICE_TIER),
    "models": _if_any(Feature.ROUTING),
    "fallbacks": _if_any(Feature.ROUTING),
    "plugins": _if_any(Feature.ROUTING),
    "provider": _if_any(Feature.ROUTING),
}

_CHAT_GUARDS: dict[str, Guard] = {
    **_COMMON,
    "store": _if_true("store", Feature.STORE),
    "background": _if_true("background", Feature.BACKGROUND),
    "tools": _chat_tools,
    "data_sources": _always(Feature.HOSTED_TOOLS),
    "web_search_options": _always(Feature.HOSTED_TOOLS),
    "modalities": _modalities,
}

_RESPONSES_GUARDS: dict[str, Guard] = {
    **_COMMON,
    "store": _if_true("store", Feature.STORE),
    "background": _if_true("background", Feature.BACKGROUND),
    "tools": _responses_tools,
    "input": _responses_input,
    "modalities": _modalities,
    "previous_response_id": _if_any(Feature.REFERENCES),
    "conversation": _if_any(Feature.REFERENCES),
    "prompt": _always(Feature.REFERENCES),  # a template kept at the provider, which may bring tools
}

_MESSAGES_GUARDS: dict[str, Guard] = {
    **_COMMON,
    "service_tier": _unless_in(frozenset({"auto", "standard_only"}), Feature.SERVICE_TIER),
    "speed": _unless_in(frozenset({"standard"}), Feature.SERVICE_TIER),
    "inference_geo": _always(Feature.ROUTING),
    "tools": _messages_tools,
    "mcp_servers": _if_any(Feature.HOSTED_TOOLS),
    "container": _always(Feature.REFERENCES),
}

_ALL = (
    Route(
        path="/v1/chat/completions",
        api="openai",
        upstream_path="/chat/completions",
        shape=Shape.CHAT,
        prompt="messages",
        content=("prediction",),  # what is predicted wrongly is billed as output
        schema=("tools", "functions", "response_format"),
        maxima=("max_tokens", "max_completion_tokens"),
        multiples=("n",),
        guards=MappingProxyType(_CHAT_GUARDS),
    ),
    Route(
        path="/v1/completions",
        api="openai",
        upstream_path="/completions",
        shape=Shape.COMPLETIONS,
        prompt="prompt",
        content=(),
        schema=("suffix",),
        maxima=("max_tokens",),
        multiples=("n", "best_of"),
        guards=MappingProxyType(_COMMON),
    ),
    Route(
        path="/v1/embeddings",
        api="openai",
        upstream_path="/embeddings",
        shape=Shape.EMBEDDINGS,
        prompt="input",
        content=(),
        schema=(),
        maxima=(),
        multiples=(),
        guards=MappingProxyType(_COMMON),
    ),
    Route(
        path="/v1/responses",
        api="openai",
        upstream_path="/responses",
        shape=Shape.RESPONSES,
        prompt="input",
        content=(),
        schema=("instructions", "tools", "text"),
        maxima=("max_output_tokens",),
        multiples=(),
        guards=MappingProxyType(_RESPONSES_GUARDS),
    ),
    Route(
        path="/v1/messages",
        api="anthropic",
        upstream_path="/messages",
        shape=Shape.MESSAGES,
        prompt="messages",
        content=("system",),
        schema=("tools", "output_config", "output_format"),
        maxima=("max_tokens",),
        multiples=(),
        guards=MappingProxyType(_MESSAGES_GUARDS),
    ),
)

ROUTES: Mapping[str, Route] = MappingProxyType({route.path: route for route in _ALL})
"""By the path that callers use."""
