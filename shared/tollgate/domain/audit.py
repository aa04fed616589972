"""The audit log's entries: what somebody changed, and what callers were refused. No content, no secrets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar, Literal, Self

from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import Window
from tollgate.domain.records import BadRecord

Action = Literal["created", "changed", "deleted"]
REFUSALS = "refusals"
"""The `event` of a line that counts some."""
SCHEMA = 1
MAX_COUNT = 2**48


@dataclass(frozen=True, slots=True)
class Change:
    """Somebody changed one item. `before` and `after` hold the attributes that differ, as JSON."""

    kind: ClassVar = "change"
    window: ClassVar = Window.MONTH
    """Entries of one of these are kept together."""

    id: str
    """The stream record's own: the same however often it is delivered."""
    ts_us: int
    actor: str
    table: Literal["policy", "tenants", "keys"]
    item: str
    """Its key: ``plan#free``, ``acme``, ``client#…``, an API key's id."""
    action: Action
    before: str
    after: str

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Refusals:
    """How often one rule refused one caller in one minute, as one process counted it.

    `rule` is the id of a limit (``user.requests.minute``) or the code of the error (``account_suspended``); `network`
    is told only where nobody knows who called. `sample` is the id of the first of these requests.
    """

    kind: ClassVar = "refusal"
    window: ClassVar = Window.DAY

    id: str
    """Made by the process that counted; the same however often the line is delivered."""
    ts_us: int
    """When the minute began, on the process's clock."""
    status: int
    rule: str
    count: int
    sample: str
    tenant: str = ""
    user: str = ""
    team: str = ""
    key: str = ""
    network: str = ""

    def line(self) -> dict[str, Any]:
        """As it is logged."""
        return {"event": REFUSALS, "v": SCHEMA, **asdict(self)}

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def parse(cls, record: Any) -> Self:
        """Read a line that came through the log pipe. Raises `BadRecord`."""
        if not isinstance(record, dict):
            raise BadRecord("not a JSON object")
        if record.get("event") != REFUSALS or record.get("v") != SCHEMA:
            raise BadRecord(f"v: this version reads {REFUSALS} of schema {SCHEMA}, found {record.get('v')!r:.80}")
        found: dict[str, Any] = {}
        for name in cls.__slots__:
            value = record.get(name, "")
            if name in ("ts_us", "status", "count"):
                most = {"ts_us": 2**53, "status": 599, "count": MAX_COUNT}[name]
                if type(value) is not int or not 0 <= value <= most:
                    raise BadRecord(f"{name}: expected a whole number from 0 to {most}, found {value!r:.80}")
            elif not isinstance(value, str) or len(value) > 256 or (not value and name in ("id", "rule")):
                raise BadRecord(f"{name}: expected text of at most 256 characters, found {value!r:.80}")
            elif not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
                raise BadRecord(f"{name}: text that is no Unicode (a lone surrogate)")
            found[name] = value
        return cls(**found)
