"""What a request needs of a model beyond plain text, and how its answers are cut short. Looked at only where a plan
gives another model than the caller named.

Fields that every model takes are listed, and fields that need a capability. Whatever else a request has may mean
something to one model alone, so such a request is served by no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tollgate.domain.policy import ModelSpec
from tollgate.wire.fields import written
from tollgate.wire.routes import Call

OTHER = "other"
"""Needed by fields that are not known here; no model serves it."""

_PLAIN = frozenset(
    {
        "model", "messages", "input", "prompt", "system", "instructions", "stream", "stream_options", "n", "best_of",
        "max_tokens", "max_completion_tokens", "max_output_tokens", "stop", "stop_sequences", "temperature", "top_p",
        "frequency_penalty", "presence_penalty", "seed", "user", "metadata", "store", "safety_identifier",
        "prompt_cache_key", "service_tier", "echo", "suffix", "inferenceConfig", "requestMetadata",
    }
)  # fmt: skip
_NEEDS = {
    "tools": "tools",
    "toolConfig": "tools",
    "tool_choice": "tools",
    "parallel_tool_calls": "tools",
    "functions": "tools",
    "function_call": "tools",
    "response_format": "structured",
    "text": "structured",
    "output_format": "structured",
    "output_config": "structured",
    "outputConfig": "structured",
    "reasoning": "reasoning",
    "reasoning_effort": "reasoning",
    "thinking": "reasoning",
    "logprobs": "logprobs",
    "top_logprobs": "logprobs",
}
_PARTS = {
    "message": "", "text": "", "input_text": "", "output_text": "", "refusal": "", "cachePoint": "",
    "tool_use": "tools", "tool_result": "tools", "function_call": "tools", "function_call_output": "tools",
    "toolUse": "tools", "toolResult": "tools",
    "image": "media", "image_url": "media", "input_image": "media", "input_audio": "media", "audio": "media",
    "file": "media", "input_file": "media", "document": "media", "video": "media",
    "thinking": "reasoning", "redacted_thinking": "reasoning", "reasoning": "reasoning",
    "reasoningContent": "reasoning",
}  # fmt: skip
"""By the type of a message or of a part of it; Converse has a member of that name instead."""
_TOOL_ROLES = ("tool", "function")


def needs(call: Call, fields: Mapping[str, Any]) -> set[str]:
    """The capabilities that a model must have to serve this request."""
    if call.route.shape == "embeddings":
        return {OTHER}  # another model's vectors are of another space
    found = {_NEEDS.get(name, OTHER) for name, value in fields.items() if value is not None and name not in _PLAIN}
    if call.media:
        found.add("media")
    for message in _messages(fields):
        found.update(_of_message(message, by_member=call.route.shape == "converse"))
    return found - {""}


def can_serve(model: ModelSpec, call: Call, fields: Mapping[str, Any], prompt_tokens: int, answer_tokens: int) -> bool:
    """Whether a model has what the request needs. The prompt's length is an estimate, hence the margin."""
    if model.context is None or prompt_tokens * 5 // 4 + answer_tokens > model.context:
        return False
    return needs(call, fields) <= set(model.serves)


def cut_short(call: Call, fields: Mapping[str, Any], most: int) -> dict[str, str]:
    """What to change in the body so that no answer has more than `most` tokens. Smaller maxima stay."""
    if call.route.shape == "converse":
        config = fields.get("inferenceConfig") or {}
        given = config.get("maxTokens")
        fits = given is not None and given <= most
        return {} if fits else {"inferenceConfig": written("inferenceConfig", {**config, "maxTokens": most})}
    names = call.route.maxima
    maxima = [name for name in names if fields.get(name) is not None]
    if not maxima:
        return {names[-1]: json.dumps(most)} if names else {}
    return {name: json.dumps(most) for name in maxima if fields[name] > most}


def _messages(fields: Mapping[str, Any]) -> Iterable[Any]:
    found = fields.get("messages") or fields.get("input")
    return found if isinstance(found, list) else ()


def _of_message(message: Any, *, by_member: bool) -> Iterable[str]:
    if not isinstance(message, dict):
        return
    if message.get("role") in _TOOL_ROLES or message.get("tool_calls"):
        yield "tools"
    content = message.get("content")
    for part in [message, *(content if isinstance(content, list) else ())]:
        if not isinstance(part, dict):
            continue
        kinds = part if by_member and part is not message else [part.get("type", "text")]
        for kind in kinds:
            yield _PARTS.get(kind, OTHER) if isinstance(kind, str) else OTHER
