"""Where something stands in a policy: ``plans.free.limits[0].requests``, in errors and in commands alike.

A path is a tuple of names and list positions. Names that hold more than letters, digits, ``_`` and ``-`` are quoted
in brackets, as in ``models["gpt-4.1"].price.input``.
"""

from __future__ import annotations

import json
import re

Path = tuple[str | int, ...]


class EntryId(str):
    """A list's entry by what it limits, such as ``user.requests.minute``, where its position says little."""

    __slots__ = ()


_BARE = re.compile(r"[A-Za-z0-9_-]+")
_INDEX = re.compile(r"\[(0|[1-9][0-9]{0,5})\]")
_QUOTED = re.compile(r'\[("(?:[^"\\]|\\.)*")\]')
_BRACKETED = re.compile(r"\[([^\[\]\"]+)\]")


def render(path: Path) -> str:
    """The path as text; empty for the whole document."""
    text = ""
    for part in path:
        if isinstance(part, int) or (isinstance(part, EntryId) and _BRACKETED.fullmatch(f"[{part}]")):
            text += f"[{part}]"
        elif _BARE.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def parse(text: str) -> Path:
    """Read what `render` writes, and ``limits[user.requests.minute]`` (a list entry by its id). Raises ValueError."""
    parts: list[str | int] = []
    position = 0
    while position < len(text):
        if found := _INDEX.match(text, position):
            parts.append(int(found[1]))
        elif found := _QUOTED.match(text, position):
            parts.append(json.loads(found[1]))
        elif found := _BRACKETED.match(text, position):
            parts.append(found[1])
        elif (found := _BARE.match(text, position + bool(parts))) and (not parts or text[position] == "."):
            parts.append(found[0])
        else:
            raise ValueError(f"cannot read {text[position:]!r} in the path {text!r}")
        position = found.end()
    if not parts:
        raise ValueError("the path is empty")
    return tuple(parts)


def nearest(name: str, known: tuple[str, ...]) -> str:
    """A hint: the known name that `name` may have meant, or what is known at all; "" where nothing is."""
    from difflib import get_close_matches  # only where something is wrong

    folded = {other.casefold(): other for other in known}
    close = get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean {folded[close[0]]}?"
    return f"known here: {', '.join(known)}" if known and len(known) <= 24 else ""
