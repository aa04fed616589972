"""Where something stands in a policy: ``plans.free.limits[0].requests``, in errors and in commands alike.

A path is a tuple of names and list positions. Names that hold more than letters, digits, ``_`` and ``-`` are quoted
in brackets, as in ``models["gpt-4.1"].price.input``. The schema (the pydantic models of `policy`) answers what may
stand at a path, which is what errors, suggestions and environment overrides need to know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_INDEX = re.compile(r"\[(0|[1-9][0-9]{0,5})\]")
_QUOTED = re.compile(r'\[("(?:[^"\\]|\\.)*")\]')
_BRACKETED = re.compile(r"\[([^\[\]\"]+)\]")


def render(path: Path) -> str:
    """The path as text; empty for the whole document."""
    text = ""
    for part in path:
        if isinstance(part, int):
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
    folded = {other.casefold(): other for other in known}
    close = get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean {folded[close[0]]}?"
    return f"known here: {', '.join(known)}" if known and len(known) <= 24 else ""


# -- the schema --------------------------------------------------------------------------------------------------


def options(kind: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The types that an annotation allows, each with the constraints that stand beside it; None is left out."""
    if get_origin(kind) is Annotated:
        inner, *constraints = get_args(kind)
        flat: list[Any] = []
        for constraint in constraints:
            flat += constraint.metadata if isinstance(constraint, FieldInfo) else [constraint]
        for option, own in options(inner):
            yield option, (*own, *flat)
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from options(member)
    elif kind is not type(None):
        yield kind, ()


def fields(kind: Any) -> dict[str, Any]:
    """The names that a mapping of this kind may hold, each with its kind; empty unless the schema names them."""
    found: dict[str, Any] = {}
    for option, _ in options(kind):
        if isinstance(option, type) and issubclass(option, BaseModel):
            for name, field in option.model_fields.items():
                inner = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
                found[field.alias or name] = inner
    return found


def inner(kind: Any, part: str | int) -> Any:
    """The kind of what stands under `part`, or None where the schema knows no such thing."""
    for option, _ in options(kind):
        if isinstance(part, int):
            if get_origin(option) is tuple:
                return get_args(option)[0]
        elif get_origin(option) is dict:
            return get_args(option)[1]
    return fields(kind).get(part) if isinstance(part, str) else None


def kind_at(root: Any, path: Path) -> Any:
    """The kind of what stands at `path` under `root`, or None."""
    kind = root
    for part in path:
        kind = inner(kind, part)
        if kind is None:
            return None
    return kind


def choices(option: Any) -> tuple[str, ...]:
    """The values of an enumeration or literal; empty for anything else."""
    if get_origin(option) is Literal:
        return tuple(str(value) for value in get_args(option))
    if isinstance(option, type) and issubclass(option, Enum):
        return tuple(str(member.value) for member in option)
    return ()
