"""The scripts of `lua/`, and how they are called: by their digest, or with their text where a server does not know it.

The command of an admission has some thirty parts, and all but two are the same for each call that meets the same
limits: they are encoded once (`Prepared`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
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


class Prepared:
    """A call of which only the first key and the first argument are still missing."""

    __slots__ = ("_after", "_before", "_between", "args", "names", "script")

    def __init__(self, script: Script, names: Sequence[str], args: Sequence[bytes] = ()) -> None:
        """`names` and `args`: those after the first."""
        self.script, self.names, self.args = script, names, args
        keys = 1 + len(names)
        self._before = b"*%d\r\n%b%b" % (4 + keys + len(args), script.by_digest, _bulks([str(keys)]))
        self._between, self._after = _bulks(names), _bulks(args)

    def call(self, name: str, arg: bytes) -> ScriptCall:
        raw = name.encode()
        parts = self._before, len(raw), raw, self._between, len(arg), arg, self._after
        return ScriptCall(self.script, b"%b$%d\r\n%b\r\n%b$%d\r\n%b\r\n%b" % parts)


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
