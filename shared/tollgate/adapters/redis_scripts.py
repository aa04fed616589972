"""The scripts of `lua/`, and how they are called: by their digest, or with their text where a server does not know it.

The command of an admission has some thirty parts, and all but two are the same for each call that meets the same
limits: they are encoded once (`Prepared`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from tollgate.adapters.redis_connection import encoded
from tollgate.domain.dataclass import dataclass


class Script:
    """One file of `lua/`, called by its digest and sent whole where Redis does not know it (after SCRIPT FLUSH)."""

    def __init__(self, name: str) -> None:
        source = (_lua_folder() / f"{name}.lua").read_bytes()
        self.source = source
        self.sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
        self.by_digest, self.whole = _bulks(["EVALSHA", self.sha]), _bulks(["EVAL", source])
        """How a command begins that calls it."""

    def call(self, names: Sequence[str], args: Sequence[str | bytes | int]) -> ScriptCall:
        """One call, with its keys and its arguments."""
        return ScriptCall(self, encoded("EVALSHA", self.sha, len(names), *names, *args))


@dataclass(slots=True)
class ScriptCall:
    """One idempotent call of a script, in Redis's protocol."""

    script: Script
    by_digest: bytes
    repeated: bool = False
    """It was sent again after its connection broke: the first copy may still be on its way."""

    def whole(self) -> bytes:
        """The same, with the script's text."""
        return self.by_digest.replace(self.script.by_digest, self.script.whole, 1)


@dataclass(slots=True)
class Bulks:
    """Some parts of a command, in Redis's protocol."""

    count: int
    raw: bytes

    @classmethod
    def of(cls, *parts: str | bytes) -> Bulks:
        return cls(len(parts), _bulks(parts))


NO_PARTS = Bulks(0, b"")


class Prepared:
    """A call of which only the first key and the first argument are still missing. Its parts are other calls' as well:
    many callers of one plan have one of these, so it holds little of its own."""

    __slots__ = ("_after", "_before", "_last", "_names", "script")

    def __init__(self, script: Script, names: Bulks, last: Bulks, args: Bulks) -> None:
        """`names`: of the keys after the first, `last`: of the last ones; `args`: those after the first."""
        self.script = script
        self._before = _begun(script.by_digest, 1 + names.count + last.count, 1 + args.count)
        self._names, self._last, self._after = names.raw, last.raw, args.raw

    def call(self, name: str, arg: bytes) -> ScriptCall:
        raw = name.encode()
        parts = self._before, len(raw), raw, self._names, self._last, len(arg), arg, self._after
        return ScriptCall(self.script, b"%b$%d\r\n%b\r\n%b%b$%d\r\n%b\r\n%b" % parts)


@lru_cache(maxsize=1024)
def _begun(script: bytes, keys: int, args: int) -> bytes:
    return b"*%d\r\n%b%b" % (3 + keys + args, script, _bulks([str(keys)]))


class Scripts:
    """All of them."""

    def __init__(self) -> None:
        self.admit = Script("admit")
        self.settle = Script("settle")
        self.unsettled = Script("unsettled")
        self.raise_floor = Script("raise_floor")
        self.publish = Script("publish")
        self.reopen = Script("reopen")
        self.forget = Script("forget")


def _bulks(parts: Iterable[str | bytes]) -> bytes:
    """As Redis's protocol writes strings."""
    raw = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in raw])


def _lua_folder() -> Path:
    """`lua/` beside the package (a deployed bundle) or beside its source root (a checkout)."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "lua", package.parent.parent / "lua"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no lua/ folder beside {package}: the installation is incomplete")
