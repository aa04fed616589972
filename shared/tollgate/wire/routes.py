"""The routes that the gateway serves, and what each request on them asks for.

`Route.read` turns a parsed body into a `Call`: the model, how large prompt and answer may become, and what has to be
changed in the body. Whatever would cost or share something that is not metered here is refused (`guards`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote

from tollgate.domain.dataclass import dataclass
from tollgate.domain.usage import BYTES_PER_TOKEN, MAX_TOKENS, tokens_of
from tollgate.wire.body import Body
from tollgate.wire.errors import Api, invalid_request, not_available
from tollgate.wire.fields import flag, largest_of, written, wrong_type
from tollgate.wire.guards import CHAT_GUARDS, COMMON_GUARDS, MESSAGES_GUARDS, RESPONSES_GUARDS, Guard, refuse
from tollgate.wire.prompt import IMAGE_TOKENS, ConversePrompt, Prompt, are_integers

KEYED_PREFIX = "/anthropic/v1/"
"""The same routes once more, for callers who send `x-api-key`: API Gateway can ask only for one header per route. It is
what Anthropic's SDK makes of a `base_url` that ends in ``/anthropic``."""

MAX_CHOICES = 128
"""What OpenAI's API takes as `n`. A call that names no maximum is held at a guess for each answer: with many, it could
cost far more than was held."""


Shape = Literal["chat", "completions", "embeddings", "responses", "messages", "converse"]
"""How requests and answers of a route look."""


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
    """The name of the field that limits an answer, for errors; empty where answers have no length (embeddings)."""
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


@dataclass(frozen=True, slots=True)
class Route:
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

    def read(self, body: Body, *, image_tokens: int = IMAGE_TOKENS) -> Call:
        """What the request asks for. Raises `ApiError` (400) for what is malformed, or refused by name."""
        fields = body.fields
        model = self.model or _model(fields)
        stream = flag(fields, "stream")
        refuse(self.guards, fields)
        prompt = self._measure(fields, image_tokens)
        if prompt.reference is not None:
            raise not_available(self.prompt, f"Referring to stored content ({prompt.reference})")
        answers = prompt.count
        if self.multiples:
            answers *= largest_of(fields, self.multiples, MAX_CHOICES)[0] or 1
        limits: Mapping[str, Any] = fields
        if self.shape == "converse":
            stream, limits = self.operation == "converse-stream", _inference(fields)
        largest, limit_field = largest_of(limits, self.maxima)
        max_output: int | None = largest * answers or None
        if answers > MAX_TOKENS or largest * answers > MAX_TOKENS:
            raise invalid_request(
                f"{answers} answers of up to {largest} tokens are more than this API can count.",
                limit_field or self.prompt,
                "integer_above_max_value",
            )
        changes: dict[str, str] = {}
        withhold = False
        if self.shape == "embeddings":
            stream, max_output = False, 0
        elif self.shape == "messages":
            if max_output is None:
                raise invalid_request("max_tokens: Field required", "max_tokens", "missing_required_parameter")
        elif self.shape == "responses":
            if fields.get("store") is None:
                changes["store"] = "false"  # absent means true there
        elif stream and self.shape != "converse":
            withhold = _ask_for_usage(fields, changes)
        return Call(  # by position: by name this takes nearly three times as long
            self,
            model,
            stream,
            prompt.text_bytes,
            prompt.tokens,
            answers,
            max_output,
            limit_field or (self.maxima[-1] if self.maxima else ""),
            withhold,
            _retained(fields),
            prompt.media,
            changes,
        )

    def _measure(self, fields: Mapping[str, Any], image_tokens: int) -> Prompt:
        prompt = ConversePrompt() if self.shape == "converse" else Prompt()
        value = fields.get(self.prompt)
        if value is None and not (self.shape == "responses" and fields.get("prompt") is not None):
            raise invalid_request(f"you must provide '{self.prompt}'", self.prompt, "missing_required_parameter")
        if self.shape in ("chat", "messages", "converse"):
            _check_messages(value)
            prompt.add(value, image_tokens)
        elif self.shape == "responses":
            if type(value) not in (str, list, type(None)):
                raise wrong_type("input", "a string or an array", value)
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


# -- fields ------------------------------------------------------------------------------------------------------


def _model(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if model is None or model == "":
        raise invalid_request("you must provide a model parameter", "model", "missing_required_parameter")
    if type(model) is not str:
        raise wrong_type("model", "a string", model)
    return model


def _inference(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where Converse has the answer's maximum."""
    config = fields.get("inferenceConfig")
    if config is None:
        return {}
    if type(config) is not dict:
        raise wrong_type("inferenceConfig", "an object", config)
    return config


def _check_messages(value: Any) -> None:
    if type(value) is not list:
        raise wrong_type("messages", "an array", value)
    if not value:
        raise invalid_request("'messages' must not be empty.", "messages", "empty_array")
    for at, message in enumerate(value):
        if type(message) is not dict:
            raise wrong_type(f"messages[{at}]", "an object", message)


def _check_texts(name: str, value: Any) -> None:
    """A text, or an array of texts, token ids, or arrays of token ids."""
    if type(value) is str:
        return
    if type(value) is not list:
        raise wrong_type(name, "a string or an array", value)
    if not value:
        raise invalid_request(f"'{name}' must not be empty.", name, "empty_array")
    if are_integers(value):
        return
    kind = type(value[0])
    for at, item in enumerate(value):
        same = type(item) is kind and kind in (str, list)
        if not same or (kind is list and not are_integers(item)):
            raise wrong_type(f"{name}[{at}]", "a string, a token id or an array of token ids, as its neighbours", item)


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
        raise wrong_type("stream_options", "an object", options)
    asked = options.get("include_usage")
    if asked is True:
        return False
    if asked is not None and asked is not False:
        raise wrong_type("stream_options.include_usage", "true or false", asked)
    changes["stream_options"] = written("stream_options", {**options, "include_usage": True})
    return True


_ALL = (
    Route(
        path="/v1/chat/completions",
        api="openai",
        upstream_path="/chat/completions",
        shape="chat",
        prompt="messages",
        content=("prediction",),  # what is predicted wrongly is billed as output
        schema=("tools", "functions", "response_format"),
        maxima=("max_tokens", "max_completion_tokens"),
        multiples=("n",),
        guards=MappingProxyType(CHAT_GUARDS),
    ),
    Route(
        path="/v1/completions",
        api="openai",
        upstream_path="/completions",
        shape="completions",
        prompt="prompt",
        content=(),
        schema=("suffix",),
        maxima=("max_tokens",),
        multiples=("n", "best_of"),
        guards=MappingProxyType(COMMON_GUARDS),
    ),
    Route(
        path="/v1/embeddings",
        api="openai",
        upstream_path="/embeddings",
        shape="embeddings",
        prompt="input",
        content=(),
        schema=(),
        maxima=(),
        multiples=(),
        guards=MappingProxyType(COMMON_GUARDS),
    ),
    Route(
        path="/v1/responses",
        api="openai",
        upstream_path="/responses",
        shape="responses",
        prompt="input",
        content=(),
        schema=("instructions", "tools", "text"),
        maxima=("max_output_tokens",),
        multiples=(),
        guards=MappingProxyType(RESPONSES_GUARDS),
    ),
    Route(
        path="/v1/messages",
        api="anthropic",
        upstream_path="/messages",
        shape="messages",
        prompt="messages",
        content=("system",),
        schema=("tools", "output_config", "output_format"),
        maxima=("max_tokens",),
        multiples=(),
        guards=MappingProxyType(MESSAGES_GUARDS),
    ),
)

ROUTES: Mapping[str, Route] = MappingProxyType({route.path: route for route in _ALL})
"""By the path that callers use."""
