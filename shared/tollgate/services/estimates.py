"""How long answers are likely to be, where the caller sets no maximum: learned per tenant and model.

A running estimate of a high quantile of real answer lengths (stochastic approximation: step up by q, down by 1 - q,
in proportion to the estimate; Robbins and Monro 1951), so that most answers fit their hold and few hold far too much.
It is only a guess: admission shrinks it to what is left.
"""

from __future__ import annotations

from collections import OrderedDict

FIRST_GUESS = 256
"""Tokens, before anything is known: a few paragraphs."""
QUANTILE = 0.9
STEP = 0.2
"""How fast the estimate follows, as a share of itself."""
CAPACITY = 10_000


class AnswerLengths:
    """Bounded; the least recently used pair of tenant and model is forgotten first."""

    def __init__(self) -> None:
        self._estimates: OrderedDict[tuple[str, str], float] = OrderedDict()

    def guess(self, tenant: str, model: str) -> int:
        """Tokens that an answer will probably not exceed."""
        return round(self._estimates.get((tenant, model), FIRST_GUESS))

    def learn(self, tenant: str, model: str, output_tokens: int) -> None:
        name = (tenant, model)
        estimate = self._estimates.pop(name, float(FIRST_GUESS))
        step = STEP * QUANTILE if output_tokens > estimate else -STEP * (1 - QUANTILE)
        self._estimates[name] = min(max(estimate * (1 + step), 1.0), 1_000_000.0)
        if len(self._estimates) > CAPACITY:
            self._estimates.popitem(last=False)
