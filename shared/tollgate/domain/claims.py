"""Which claim of a token says what, for issuers that name things in their own way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Path = tuple[str, ...]
"""The names to follow through nested objects."""

_POINTER = re.compile(r"(/([^/~]|~[01])+)+")


def path(name: str) -> Path:
    """A claim's name as it is written in settings, taken literally (``https://example.com/tenant`` is one name) unless
    it is a JSON pointer to a nested claim: ``/org/id`` (RFC 6901; ``~1`` stands for a slash, ``~0`` for a tilde).

    Raises `ValueError`.
    """
    if not name:
        raise ValueError("a claim's name is empty")
    if not name.startswith("/"):
        return (name,)
    if not _POINTER.fullmatch(name):
        raise ValueError(f"{name!r} is not a JSON pointer")
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in name[1:].split("/"))


class ClaimNames(NamedTuple):
    """Where each part of an identity is found: the first of these paths that a token has."""

    tenant: tuple[Path, ...] = (("tenant",), ("custom:tenant",))
    user: tuple[Path, ...] = (("sub",), ("client_id",))
    """Tokens of machines (client credentials) may have no `sub`; their client is their user."""
    plan: tuple[Path, ...] = (("plan",), ("custom:plan",))
    team: tuple[Path, ...] = (("team",), ("custom:team",))
    key: tuple[Path, ...] = ()
    scopes: tuple[Path, ...] = (("scope",), ("scp",))
    groups: tuple[Path, ...] = (("cognito:groups",),)

    def having(self, names: Mapping[str, Sequence[str]]) -> ClaimNames:
        """These, with other names for some parts; none at all for a part that tokens shall not decide.

        Raises `ValueError` that names the part.
        """
        found = {}
        for part, given in names.items():
            if part not in self._fields:
                raise ValueError(f"{part}: expected one of {', '.join(self._fields)}")
            try:
                found[part] = tuple(path(name) for name in given)
            except ValueError as error:
                raise ValueError(f"{part}: {error}") from None
        return self._replace(**found)


def find(claims: Mapping[str, Any], paths: tuple[Path, ...]) -> Any:
    """What the first path leads to that the token has; ``""`` if it has none of them.

    A claim of the wrong type is found all the same, for its reader to refuse: it must not be passed over.
    """
    for steps in paths:
        found: Any = claims
        for step in steps:
            if not isinstance(found, dict) or step not in found:
                break
            found = found[step]
        else:
            return found
    return ""
