"""What a tenant's calls to a model are likely to use, learned from what earlier ones used.

Two figures, kept per tenant and model, because texts and habits differ more between tenants than between models:

- bytes of prompt per token: all bytes over all tokens, the older ones fading, so long prompts count as they cost;
- tokens of an answer whose length nobody limited: a running median by stochastic approximation (Robbins and Monro
  1951), in proportion to itself: up or down by a step that shrinks from a half to 5 % as more is known. The median,
  because the hold should be what such an answer costs: holding a high quantile would refuse others for nothing, and
  what is used beyond a hold is debt, not a gift.

The store keeps them for all containers (`lua/settle.lua` learns by the same formulas) and tells them with admissions.
Pure: no clock, no IO.
"""

from __future__ import annotations

import struct

from tollgate.domain.dataclass import dataclass
from tollgate.domain.usage import BYTES_PER_TOKEN

FIRST_ANSWER = 256
"""Tokens of an answer, before anything is known: a few paragraphs."""
LEAST_PROMPT = 512
"""Bytes. Shorter prompts teach nothing of the ratio: they are mostly what a message costs beside its text, and a ratio
learned from them would make a long prompt seem several times as long."""
FADE_AT = 100_000.0
"""Prompt tokens after which all that was seen counts half."""
FIRST_STEP = 0.5
LEAST_STEP = 0.05
MAX_ANSWER = 1_000_000.0
"""Tokens. No model answers at such length; a provider's count that says so is not believed."""
_FORMAT = struct.Struct("<4d")


@dataclass(slots=True)
class Sample:
    """What one call used. Zeros where there is nothing to learn: a prompt with images says nothing about text, a
    limited answer nothing about habits."""

    prompt_bytes: int
    prompt_tokens: int
    answer_tokens: int


@dataclass(slots=True)
class Learned:
    """What is known so far; the four numbers that the store keeps."""

    prompt_bytes: float = 0.0
    prompt_tokens: float = 0.0
    answer: float = 0.0
    answers: float = 0.0
    """How many were learned from."""

    @property
    def bytes_per_token(self) -> float:
        """Of prompts; between 1 (rare scripts) and 16 (runs of blanks)."""
        if not self.prompt_tokens:
            return BYTES_PER_TOKEN
        return min(max(self.prompt_bytes / self.prompt_tokens, 1.0), 16.0)

    @property
    def answer_tokens(self) -> int:
        """What an answer of no given maximum will probably use."""
        return round(self.answer) if self.answers else FIRST_ANSWER

    def add(self, sample: Sample) -> None:
        """Learn from one call."""
        if sample.prompt_tokens > 0:
            self.prompt_bytes += sample.prompt_bytes
            self.prompt_tokens += sample.prompt_tokens
            if self.prompt_tokens > FADE_AT:
                self.prompt_bytes, self.prompt_tokens = self.prompt_bytes / 2, self.prompt_tokens / 2
        if sample.answer_tokens > 0:
            step = max(LEAST_STEP, FIRST_STEP / (1 + self.answers / 4))
            if not self.answers:
                self.answer = min(float(sample.answer_tokens), MAX_ANSWER)
            elif sample.answer_tokens > self.answer:
                self.answer = min(self.answer * (1 + step), sample.answer_tokens, MAX_ANSWER)
            else:
                self.answer = max(self.answer / (1 + step), sample.answer_tokens)
            self.answers += 1

    def lightly(self) -> Learned:
        """The same figures as a start for another tenant, whose own calls soon outweigh them."""
        weight = min(1.0, 1_000 / self.prompt_tokens) if self.prompt_tokens else 0.0
        return Learned(self.prompt_bytes * weight, self.prompt_tokens * weight, self.answer, min(self.answers, 2.0))

    def packed(self) -> bytes:
        return _FORMAT.pack(self.prompt_bytes, self.prompt_tokens, self.answer, self.answers)

    @classmethod
    def unpacked(cls, raw: bytes) -> Learned | None:
        """What a store keeps; None for what cannot be that."""
        if len(raw) != _FORMAT.size:
            return None
        numbers = _FORMAT.unpack(raw)
        return cls(*numbers) if all(0 <= number <= 2**53 for number in numbers) else None
