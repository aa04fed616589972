"""What one call to a model really used, in tokens, as the provider counted it."""

from __future__ import annotations

from dataclasses import replace

from tollgate.domain.dataclass import dataclass

MAX_TOKENS = 2**31 - 1
"""No count, no maximum, nor its product with the number of answers, may be larger: more is a mistake or an attack."""
BYTES_PER_TOKEN = 4.0
"""English text, roughly; used until a model's own ratio has been learned from settled usage."""


@dataclass(slots=True)  # not frozen: that makes its making three times as slow
class Usage:
    """Tokens of one call. The parts are contained in their totals, whatever the provider's own convention is, and what
    a provider does not tell apart is 0."""

    input_tokens: int = 0
    """The whole prompt, including what was read from or written to the provider's cache."""
    cached_input_tokens: int = 0
    """The part of the input that the provider read from its cache."""
    cache_write_tokens: int = 0
    """The part of the input that the provider wrote to its cache, for however long."""
    output_tokens: int = 0
    """The whole answer, including reasoning."""
    reasoning_tokens: int = 0
    """The part of the output that was reasoning."""
    estimated: bool = False
    """Whether some of these numbers are our estimate, because the provider's did not arrive."""
    cache_write_long_tokens: int = 0
    """The part of the cache writes that is kept for long and costs more (Anthropic: an hour instead of five minutes;
    OpenAI: twelve hours instead of half a one)."""
    audio_input_tokens: int = 0
    """The part of the input that was sound. Providers do not say how much of it was cached as well."""
    audio_output_tokens: int = 0
    """The part of the output that was sound."""

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def tokens_of(text_bytes: int, bytes_per_token: float = BYTES_PER_TOKEN) -> int:
    """How many tokens `text_bytes` of text are likely to be, rounded up."""
    return -int(-text_bytes // bytes_per_token)


def estimate(
    known: Usage | None, prompt_tokens: int, produced_bytes: int, bytes_per_token: float = BYTES_PER_TOKEN
) -> Usage:
    """What to bill for a call whose usage never arrived, or arrived in part.

    `known`: what the provider had said before the stream broke (it counts the prompt first). `prompt_tokens`: our own
    estimate of the prompt. `produced_bytes`: text of the answer that was seen.
    """
    produced = tokens_of(produced_bytes, bytes_per_token)
    if known is None:
        return Usage(input_tokens=prompt_tokens, output_tokens=produced, estimated=True)
    return replace(known, output_tokens=max(known.output_tokens, produced), estimated=True)
