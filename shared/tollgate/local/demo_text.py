"""The demo model's words and its tokeniser, which is simple enough to count by hand.

A token is a run of up to four letters or digits, or any other single character that is not white space:
``Hello, world`` is ``Hell o , worl d``, five tokens. A chat message costs three tokens more, for its role and its
ends, as with real chat models. An answer's words are chosen so that each is exactly one token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MESSAGE_OVERHEAD = 3
IMAGE_TOKENS = 85
"""What an image, a file or a sound costs."""

_TOKEN = re.compile(r"[^\W_]{1,4}|[^\s]")
_WORDS = (
    "the", "gate", "lets", "you", "in", "when", "your", "plan", "has", "room", "and",
    "asks", "a", "fair", "toll", "for", "each", "word", "that", "goes", "by", "so",
)  # fmt: skip


def count(text: str) -> int:
    """Tokens of a text."""
    return sum(1 for _ in _TOKEN.finditer(text))


def count_content(content: Any) -> int:
    """Tokens of a message's content or of a prompt: text, token ids, or a list of parts."""
    if isinstance(content, str):
        return count(content)
    if isinstance(content, int):
        return 1
    if isinstance(content, list):
        return sum(count_content(part) for part in content)
    if isinstance(content, dict):
        if isinstance(text := content.get("text"), str):
            return count(text)
        if "content" in content or "role" in content:
            return MESSAGE_OVERHEAD + count_content(content.get("content"))
        return IMAGE_TOKENS
    return 0


def words(number: int, first: int = 0) -> Iterator[str]:
    """So many tokens of answer, each with the space that follows it."""
    for i in range(first, first + number):
        yield _WORDS[i % len(_WORDS)] + " "
