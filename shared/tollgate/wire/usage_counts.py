"""Usage as each provider writes it, read into `Usage`, whose parts are contained in their totals.

OpenAI counts that way itself. Anthropic's and Bedrock's input leaves out what their caches read and wrote. Nothing is
believed because it is there: a count is a whole number from 0 to `MAX_TOKENS`, an explicit zero is a zero, null is
nothing, and a part larger than its total is cut to it.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from tollgate.domain.usage import MAX_TOKENS, Usage


def _credible(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_TOKENS


class _Parts:
    """Reads optional counts out of optional objects, and remembers whether any of them was odd."""

    __slots__ = ("odd",)

    def __init__(self) -> None:
        self.odd = False

    def of(self, details: Any, name: str) -> int:
        """The count of that name; 0 where there is none."""
        if details is None:
            return 0
        value = details.get(name) if type(details) is dict else details
        if value is None:
            return 0
        if _credible(value) and type(details) is dict:
            return value
        self.odd = True
        return 0

    def within(self, part: int, total: int) -> int:
        if part <= total:
            return part
        self.odd = True
        return total


def openai(usage: Any) -> tuple[Usage, bool] | None:
    """Usage as OpenAI gives it, and whether something in it was odd; None if its totals are not credible.

    Chat, completions and embeddings say prompt and completion, responses say input and output.
    """
    if type(usage) is not dict:
        return None
    new = "input_tokens" in usage
    prompt = usage.get("input_tokens" if new else "prompt_tokens")
    answer = usage.get("output_tokens" if new else "completion_tokens", 0)  # embeddings have none
    if not _credible(prompt) or not _credible(answer):
        return None
    inputs = usage.get("input_tokens_details" if new else "prompt_tokens_details")
    outputs = usage.get("output_tokens_details" if new else "completion_tokens_details")
    if inputs is None and outputs is None:
        return Usage(prompt, 0, 0, answer), False
    parts = _Parts()
    reasoning = parts.of(outputs, "reasoning_tokens")
    if reasoning and usage.get("total_tokens") == prompt + answer + reasoning:
        answer += reasoning  # some compatible providers count reasoning beside the completion, not in it
    cached = parts.within(parts.of(inputs, "cached_tokens"), prompt)
    written = parts.within(parts.of(inputs, "cache_write_tokens"), prompt - cached)
    times = inputs.get("cache_write_tokens_details") if inputs is not None and written else None
    found = Usage(
        prompt,
        cached,
        written,
        answer,
        parts.within(reasoning, answer),
        cache_write_long_tokens=parts.within(parts.of(times, "ttl_12h_tokens"), written),
        audio_input_tokens=parts.within(parts.of(inputs, "audio_tokens"), prompt),
        audio_output_tokens=parts.within(parts.of(outputs, "audio_tokens"), answer),
    )
    return found, parts.odd


def converse(usage: Any) -> tuple[Usage, bool] | None:
    """The same for Bedrock's Converse, whole or in the `metadata` event of its stream."""
    if type(usage) is not dict:
        return None
    prompt, answer = usage.get("inputTokens"), usage.get("outputTokens")
    if not _credible(prompt) or not _credible(answer):
        return None
    parts = _Parts()
    cached = parts.of(usage, "cacheReadInputTokens")
    written = parts.of(usage, "cacheWriteInputTokens")
    long = 0
    details = usage.get("cacheDetails")
    for detail in details if type(details) is list else ():
        if type(detail) is dict and detail.get("ttl") != "5m":
            long += parts.of(detail, "inputTokens")
    found = Usage(
        prompt + cached + written,
        cached,
        written,
        answer,
        cache_write_long_tokens=parts.within(long, written),
    )
    return found, parts.odd


class AnthropicCounts:
    """Anthropic's counts, which arrive in two cumulative parts."""

    __slots__ = ("_counts", "_parts")

    _NAMES: tuple[tuple[str, str], ...] = (
        ("", "input_tokens"),
        ("", "cache_read_input_tokens"),
        ("", "cache_creation_input_tokens"),
        ("cache_creation", "ephemeral_1h_input_tokens"),
        ("", "output_tokens"),
        ("output_tokens_details", "thinking_tokens"),
    )
    """Each count, and the object inside usage that it stands in."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._parts = 0

    def add(self, usage: Any) -> bool:
        """Take in one usage object; False if something in it is not credible (the rest of it counts)."""
        if type(usage) is not dict:
            return False
        self._parts += 1
        good = True
        for inside, name in self._NAMES:
            place = usage.get(inside) if inside else usage
            value = place.get(name) if type(place) is dict else place
            if value is None:
                continue
            if _credible(value) and type(place) is dict:
                self._counts[name] = max(value, self._counts.get(name, 0))
            else:
                good = False
        return good

    def usage(self, *, complete: bool) -> Usage | None:
        """What is known. The first part has the input and an output of about 1, so alone it is an estimate."""
        counts = self._counts
        if "input_tokens" not in counts or "output_tokens" not in counts:
            return None
        read = counts.get("cache_read_input_tokens", 0)
        written = counts.get("cache_creation_input_tokens", 0)
        output = counts["output_tokens"]
        return Usage(
            input_tokens=counts["input_tokens"] + read + written,
            cached_input_tokens=read,
            cache_write_tokens=written,
            output_tokens=output,
            reasoning_tokens=min(counts.get("thinking_tokens", 0), output),
            estimated=not complete and self._parts < 2,
            cache_write_long_tokens=min(counts.get("ephemeral_1h_input_tokens", 0), written),
        )
