"""What usage costs, in whole micro-dollars. No floats anywhere.

A price of one US dollar per million tokens is one micro-dollar per token. Prices carry up to six decimals, so they
are kept as integers of 10^-6 micro-dollars (pico-dollars) per token, and each request rounds up once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from tollgate.domain.policy import PriceSpec
from tollgate.domain.usage import Usage

PICO = 1_000_000


def _pico(dollars_per_million: Decimal) -> int:
    return int(dollars_per_million * PICO)


@dataclass(frozen=True, slots=True)
class Price:
    """Pico-dollars per token, by kind of token."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int
    dearest_input: int = field(init=False, repr=False, compare=False)
    dearest_output: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dearest_input", max(self.input, self.cached_input, self.cache_write))
        object.__setattr__(self, "dearest_output", max(self.output, self.reasoning))

    @classmethod
    def of(cls, spec: PriceSpec) -> Price:
        """Kinds that the policy does not price cost as much as the kind that they are part of."""
        return cls(
            input=_pico(spec.input),
            cached_input=_pico(spec.input if spec.cached_input is None else spec.cached_input),
            cache_write=_pico(spec.input if spec.cache_write is None else spec.cache_write),
            output=_pico(spec.output),
            reasoning=_pico(spec.output if spec.reasoning is None else spec.reasoning),
        )

    def estimate(self, input_tokens: int, output_tokens: int) -> int:
        """Micro-dollars to hold for a call: every token at its dearest kind, so that the hold covers the bill."""
        return -(-(input_tokens * self.dearest_input + output_tokens * self.dearest_output) // PICO)

    def affordable(self, microusd: int, input_tokens: int) -> int:
        """The most output tokens for which `estimate` stays within `microusd`; 0 if not even the prompt does."""
        left = microusd * PICO - input_tokens * self.dearest_input
        if left < 0:
            return 0
        return left // self.dearest_output if self.dearest_output else 2**31 - 1

    def cost(self, usage: Usage) -> int:
        """Micro-dollars that `usage` costs. Cached and cache-write tokens are part of the input, reasoning tokens part
        of the output; a part larger than its whole (a corrupt answer) is cut to it."""
        cached = min(usage.cached_input_tokens, usage.input_tokens)
        written = min(usage.cache_write_tokens, usage.input_tokens - cached)
        reasoning = min(usage.reasoning_tokens, usage.output_tokens)
        pico = (
            (usage.input_tokens - cached - written) * self.input
            + cached * self.cached_input
            + written * self.cache_write
            + (usage.output_tokens - reasoning) * self.output
            + reasoning * self.reasoning
        )
        return -(-pico // PICO)
